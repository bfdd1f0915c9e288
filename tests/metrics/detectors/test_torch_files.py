"""PyTorch's files are read without PyTorch, and nothing in them runs."""

import io
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors.torch_files import read_torch

NUMBERS = np.arange(12, dtype=np.float32)


@pytest.fixture
def torch_like(monkeypatch):
    """Modules with the names that PyTorch's pickles use, and a function that writes such pickles."""

    def _rebuild_tensor_v2():
        """Never called: pickles hold its name."""

    class FloatStorage:
        pass

    utils, root = types.ModuleType("torch._utils"), types.ModuleType("torch")
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"
    utils._rebuild_tensor_v2, root.FloatStorage, root._utils = _rebuild_tensor_v2, FloatStorage, utils
    monkeypatch.setitem(sys.modules, "torch", root)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Storage:
        pass

    class Tensor:
        def __init__(self, offset, shape, strides):
            self.view = (Storage(), offset, shape, strides, False, {})

        def __reduce__(self):
            return _rebuild_tensor_v2, self.view

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", FloatStorage, "0", "cpu", len(NUMBERS)) if isinstance(value, Storage) else None

    def written(tree):
        file = io.BytesIO()
        Writer(file, 2).dump(tree)
        return file.getvalue()

    return Tensor, written


def archive(pickled, numbers=NUMBERS):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("model/data.pkl", pickled)
        made.writestr("model/data/0", numbers.tobytes())
    return file.getvalue()


def older(pickled):
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    tail = pickle.dumps(["0"], 2) + len(NUMBERS).to_bytes(8, "little") + NUMBERS.tobytes()
    return head + pickled + tail


@pytest.mark.parametrize("form", [archive, older])
def test_views_of_storages_come_back_by_name(torch_like, form):
    Tensor, written = torch_like
    tree = {"a": {"weight": Tensor(0, (3, 4), (4, 1)), "turned": Tensor(0, (4, 3), (1, 4))}, "b": Tensor(5, (), ()),
            "step": 7, "empty": Tensor(0, (0, 3), (3, 1))}
    found = read_torch(form(written(tree)), "file")
    assert list(found) == ["a.weight", "a.turned", "b", "empty"]
    np.testing.assert_array_equal(found["a.weight"], NUMBERS.reshape(3, 4))
    np.testing.assert_array_equal(found["a.turned"], NUMBERS.reshape(3, 4).T)
    assert found["b"] == 5 and found["empty"].shape == (0, 3)


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("form", [archive, older])
def test_nothing_runs(torch_like, form, tmp_path):
    made = tmp_path / "made"
    with refused("torch_files._Reader.find_class", "posix.system"):
        read_torch(form(pickle.dumps({"a": Runs(os.system, f"touch {made}")}, 2)), "file")
    with refused("torch_files._Reader.find_class", ".eval"):
        read_torch(form(pickle.dumps(Runs(eval, f"open('{made}', 'w')"), 2)), "file")
    assert not made.exists()


def test_damaged_and_dishonest_files_are_refused(torch_like):
    Tensor, written = torch_like
    for view in ((10, (3,), (1,)), (-1, (3,), (1,)), (0, (2,), (12,)), (5, (2,), (-1,))):
        with refused("torch_files._array", "12"):
            read_torch(archive(written({"a": Tensor(*view)})), "file")
    whole = archive(written({"a": Tensor(0, (12,), (1,))}))
    for data in (b"", b"PK", whole[:-30], pickle.dumps(3)):
        with pytest.raises(UserError) as error:
            read_torch(data, "file")
        assert error.value.code in ("torch_files.read_torch", "torch_files._read_older")


@pytest.mark.full
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(zipped):
    torch = pytest.importorskip("torch", reason="reads PyTorch's files (requirements/peers.txt)")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2).bfloat16())
    module[0].weight = torch.nn.Parameter(module[0].weight.transpose(0, 1))  # not contiguous
    file = io.BytesIO()
    torch.save(module.state_dict(), file, _use_new_zipfile_serialization=zipped)
    found = read_torch(file.getvalue(), "file")
    assert set(found) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found[name].astype(np.float64), tensor.double().numpy())


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"p999999999\n"])
def test_a_pickle_cannot_ask_for_a_table_of_gigabytes(put):
    with refused("torch_files._Reader.load"):
        read_torch(archive(b"\x80\x02}" + put + b"."), "x")


def test_a_tensor_has_no_more_numbers_than_its_storage(torch_like):
    Tensor, written = torch_like
    with refused("torch_files._array", "12"):  # a stride of 0 repeats one number
        read_torch(archive(written({"a": Tensor(0, (10**9,), (0,))})), "x")
