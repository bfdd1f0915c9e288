"""GMFlow in place of DIS: files of its weights, what is refused, and what is found again."""

from __future__ import annotations

import math
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from tests.metrics.detectors.test_gmflow import random_tensors
from tests.metrics.detectors.test_torch_files import archive, torch_like  # noqa: F401  (a fixture)
from tests.refusals import refused
from vdm_jax.metrics import flow, flow_estimators
from vdm_jax.metrics.detectors import gmflow
from vdm_jax.metrics.flow_estimators import BY_DIS, GMFlow, moved
from vdm_jax.weights.tensor_files import lazy, write_file


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("gmflow") / "gmflow.safetensors"
    write_file(path, lazy(tensors.items()), {})
    return path


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3)).astype(np.uint8)


def test_flow_is_the_network_s(tensors, file, frames):
    """Both ways in one call."""
    found = GMFlow(file).both(*frames)
    expected = gmflow.flows(gmflow.from_published(tensors), *(frame[None].astype(np.float32) for frame in frames))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == (33, 47, 2) and ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs[0])
    compiled = gmflow.flows._cache_size()
    np.testing.assert_array_equal(GMFlow(str(file)).flow(*frames), found[0])
    assert gmflow.flows._cache_size() == compiled  # once for this size


def test_dis_is_as_it_was(frames):
    pytest.importorskip("cv2", reason="optical flow needs the extra [metrics]")
    forward, backward = BY_DIS.both(*frames)
    np.testing.assert_array_equal(forward, flow.flow(*frames))
    np.testing.assert_array_equal(backward, flow.flow(*frames[::-1]))
    np.testing.assert_array_equal(BY_DIS.flow(*frames), forward)
    np.testing.assert_array_equal(BY_DIS.seen(forward, backward), flow.visible(forward, backward))


def test_a_file_is_read_once_until_it_changes(tensors, tmp_path):
    path = tmp_path / "weights.safetensors"
    write_file(path, lazy(tensors.items()), {})
    first = GMFlow(path).params
    assert GMFlow(path).params is first
    changed = tensors | {"upsampler.0.bias": tensors["upsampler.0.bias"] + 1}
    write_file(path, lazy(changed.items()), {})
    np.testing.assert_allclose(GMFlow(path).params["upsampler_0"]["bias"], first["upsampler_0"]["bias"] + 1)


def test_checkpoints_are_read_without_what_is_next_to_the_model(tensors, tmp_path):
    """As the published file has them: under 'model', maybe with an optimiser's."""
    path, inside = tmp_path / "checkpoint.safetensors", {f"model.{name}": array for name, array in tensors.items()}
    write_file(path, lazy((inside | {"optimizer.state.0.exp_avg": np.zeros(3, np.float32)}).items()), {})
    np.testing.assert_array_equal(GMFlow(path).params["upsampler_2"]["bias"], tensors["upsampler.2.bias"])


@pytest.mark.full
@pytest.mark.parametrize("older", [False, True])
def test_files_that_torch_writes(tensors, tmp_path, older):
    torch = pytest.importorskip("torch", reason="compares with PyTorch (requirements/peers.txt)")
    path = tmp_path / "gmflow_sintel.pth"
    state = OrderedDict((name, torch.tensor(array)) for name, array in tensors.items())
    state._metadata = OrderedDict({"": {"version": 1}})  # as modules write theirs
    torch.save({"model": state, "step": 3}, path, _use_new_zipfile_serialization=not older)
    found, expected = GMFlow(path).params, gmflow.from_published(tensors)
    np.testing.assert_array_equal(found["backbone"]["conv1"]["kernel"], expected["backbone"]["conv1"]["kernel"])
    np.testing.assert_array_equal(found["upsampler_0"]["kernel"], expected["upsampler_0"]["kernel"])


def test_other_files_are_refused(tensors, tmp_path, torch_like):  # noqa: F811
    missing = tmp_path / "nowhere.pth"
    with refused("flow_estimators.read_weights", str(missing), "no such file"):
        GMFlow(missing)
    other = tmp_path / "weights.ckpt"
    other.write_bytes(b"")
    with refused("flow_estimators.read_weights", str(other), ".pth or .safetensors"):
        GMFlow(other)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK no archive")
    with refused("torch_files.read_torch", str(damaged), "cannot be read"):
        GMFlow(damaged)
    tensor, written = torch_like
    lacking = tmp_path / "lacking.pth"
    lacking.write_bytes(archive(written({"model": {"backbone.conv1.weight": tensor(0, (3, 4), (4, 1))}})))
    with refused("gmflow.from_published", str(lacking), "backbone.conv1.weight", "has shape (3, 4)", "(64, 3, 7, 7)"):
        GMFlow(lacking)
    runs = tmp_path / "runs.pth"
    with zipfile.ZipFile(runs, "w") as file:
        file.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with refused("torch_files._Reader.find_class", str(runs), "asks for os.system"):
        GMFlow(runs)
    few = tmp_path / "few.safetensors"
    write_file(few, lazy([("model.upsampler.2.bias", tensors["upsampler.2.bias"])]), {})
    with refused("gmflow.from_published", str(few), "'backbone.conv1.weight'", "is missing"):
        GMFlow(few)


@pytest.mark.parametrize("sizes", [((31, 48), (31, 48)), ((48, 31), (48, 31)), ((32, 48), (48, 32))])
def test_other_frames_are_refused(file, sizes):
    one, other = (np.zeros((*size, 3), np.uint8) for size in sizes)
    with refused("flow_estimators.GMFlow.both", str([*sizes[0], 3]), str([*sizes[1], 3]), "from 32 pixels"):
        GMFlow(file).flow(one, other)


def test_values_are_moved_between_pixels_and_0_beyond_the_borders():
    rng = np.random.default_rng(1)
    values, along = rng.normal(size=(5, 6, 2)).astype(np.float32), rng.normal(0, 3, (5, 6, 2)).astype(np.float32)
    along[0, 0], along[4, 5] = (-1e6, 1e6), (0, 0)
    found = moved(values, along)
    for y, x in np.ndindex(5, 6):
        column, row = x + float(along[y, x, 0]), y + float(along[y, x, 1])
        expected = np.zeros(2)
        for i, j in np.ndindex(5, 6):
            expected += max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * values[i, j]
        np.testing.assert_allclose(found[y, x], expected, atol=1e-5)


def test_what_is_found_again_is_by_the_authors_bound(file):
    """Flow forth by 8 pixels, and back by that and something more; two pixels would do where the flow is longer."""
    forward = np.broadcast_to(np.float32([8, 0]), (32, 48, 2))
    network = GMFlow(file)
    for off, holds in ((0.6, True), (0.7, False)):  # the bound is 0.01 (8 + 8) + 0.5 = 0.66
        seen = network.seen(forward, np.float32(forward * -(1 + off / 8)))
        assert (seen[:, :39] == holds).all() and not seen[:, 41:].any()  # beyond the border nothing comes back
    rng = np.random.default_rng(2)
    forward, backward = rng.normal(0, 0.4, (2, 32, 48, 2)).astype(np.float32)
    seen, back = network.seen(forward, backward), moved(backward, forward)
    for y, x in np.ndindex(32, 48):
        off = math.hypot(*(forward[y, x] + back[y, x]))
        assert seen[y, x] == (off <= 0.01 * (math.hypot(*forward[y, x]) + math.hypot(*backward[y, x])) + 0.5)
    assert 0.2 < seen.mean() < 0.9 and flow_estimators.BETA == 0.5
