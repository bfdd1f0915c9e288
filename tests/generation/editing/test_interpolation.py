"""RIFE's weights from files, and ControlVideo with a tiny released model that smooths frames by them."""

from __future__ import annotations

import json
import os
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.generation.editing.given import write_square
from tests.networks.rife import random_tensors, released_shapes
from tests.pipelines.folders import write_control
from tests.refusals import refusals_of_commands, refused
from vdm_jax.commands.main import main
from vdm_jax.generation.editing import files, interpolation
from vdm_jax.generation.editing.control_video import ControlVideo
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.files import VideoJob
from vdm_jax.generation.editing.interpolation import (
    by_network,
    expected,
    from_released,
    interpolated,
    parameters,
    their_name,
)
from vdm_jax.generation.editing.smoothing import by_flow, smoothed
from vdm_jax.generation.released.models import load_released, with_size
from vdm_jax.weights.tensor_files import lazy, write_file

CODE = "interpolation.from_released"


def write_weights(path, arrays):
    write_file(path, lazy(arrays.items()), {})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the authors' names, with the block of training and the prefix of several devices."""
    arrays = {f"module.{name}": array for name, array in random_tensors().items()}
    return write_weights(tmp_path_factory.mktemp("rife") / "flownet.safetensors", arrays)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return load_released(write_control(tmp_path_factory.mktemp("control") / "folder"), jax.devices()[:1])


def videos(frames, height=32, width=32):
    return np.random.default_rng(0).uniform(-1, 1, (1, frames, height, width, 3)).astype(np.float32)


def changed(one, other):
    """Numbers of the frames that differ."""
    return [frame for frame in range(len(one)) if (one[frame] != other[frame]).any()]


def test_the_tensors_are_those_released():
    """By name and shape, kernels turned; those of the block of training are not among them."""
    released = {name: shape for name, shape in released_shapes().items() if not name.startswith("block_tea.")}
    ours = {their_name(path): shape for path, shape in expected().items()}
    assert len(released) == 120 and ours.keys() == released.keys()
    for name, shape in ours.items():
        theirs = released[name]
        assert shape == (theirs if len(theirs) == 1 else (*theirs[2:], *theirs[1::-1])), name
    assert sum(map(np.prod, ours.values())) == 2_277_600


@pytest.mark.parametrize("form", ["module", "plain", "inference", "half"])
def test_files_round_trip(form, tmp_path):
    """With and without prefix, without the block of training, in half precision: each number in its place."""
    arrays = random_tensors(1)
    if form == "inference":
        arrays = {name: array for name, array in arrays.items() if not name.startswith("block_tea.")}
    if form == "half":
        arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    prefix = "module." if form == "module" else ""
    path = write_weights(tmp_path / "x.safetensors", {prefix + name: array for name, array in arrays.items()})
    found = parameters(path)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, parameters(path))
    kernel = found["block1"]["conv0.0"]["0"]["kernel"]
    np.testing.assert_array_equal(kernel[1, 2, 3, 4], np.float32(arrays["block1.conv0.0.0.weight"][4, 3, 1, 2]))
    transposed = found["block2"]["conv1.2"]["kernel"]
    np.testing.assert_array_equal(transposed[0, 3, 1, 7], np.float32(arrays["block2.conv1.2.weight"][7, 1, 0, 3]))
    np.testing.assert_array_equal(found["block0"]["convblock3.1"]["1"]["weight"],
                                  np.float32(arrays["block0.convblock3.1.1.weight"]))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))


def test_a_changed_file_is_read_again(tmp_path):
    path, first = tmp_path / "x.safetensors", random_tensors(1)
    write_weights(path, first)
    bias = parameters(path)["block0"]["conv1.2"]["bias"]
    assert parameters(path)["block0"]["conv1.2"]["bias"] is bias
    write_weights(path, random_tensors(2))
    os.utime(path, ns=(1, 1))
    assert (parameters(path)["block0"]["conv1.2"]["bias"] != bias).all()


@pytest.mark.parametrize(("change", "said"), [
    ({"block1.conv1.2.bias": None}, "block1.conv1.2.bias (missing instead of [4])"),
    ({"block0.conv0.0.0.weight": np.zeros((45, 7, 3, 3), np.float32)},
     "block0.conv0.0.0.weight (float32 [45, 7, 3, 3] instead of [45, 11, 3, 3])"),
    ({"block2.conv2.2.bias": np.zeros(1, np.int32)}, "block2.conv2.2.bias (int32 [1] instead of [1])"),
    ({"block2.conv2.2.bias": np.full(1, np.nan, np.float32)}, "block2.conv2.2.bias (NaN or infinite)"),
    ({"encode.cnn0.weight": np.zeros((32, 3, 3, 3), np.float32)}, "encode.cnn0.weight (not known)")])
def test_other_tensors_are_refused(change, said, tmp_path):
    """Those of later versions of the network among them."""
    arrays = {name: array for name, array in (random_tensors() | change).items() if array is not None}
    path = write_weights(tmp_path / "x.safetensors", arrays)
    with refused(CODE, f"{path}: tensors do not fit: {said}; permitted", "version HDv3"):
        parameters(path)


def test_other_files_are_refused(tmp_path, monkeypatch):
    with refused("interpolation.parameters", "nowhere.pkl: no such file", "version HDv3"):
        parameters(tmp_path / "nowhere.pkl")
    with refused("interpolation.parameters", "no such file"):
        parameters(tmp_path)
    (tmp_path / "text.safetensors").write_text("no weights")
    with refused("tensor_files._header", "text.safetensors is not a complete safetensors file"):
        parameters(tmp_path / "text.safetensors")
    with refused(CODE, "(missing instead of [45])", " and 116 more"):
        parameters(write_weights(tmp_path / "none.safetensors", {}))
    monkeypatch.setattr(interpolation, "MAX_BYTES", 10)
    (tmp_path / "large.pkl").write_bytes(b"PK" + bytes(9))
    with refused("interpolation.parameters", "large.pkl has 11 bytes", "at most 10"):
        parameters(tmp_path / "large.pkl")


class Runs:
    """A pickle of it asks to make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_in_a_pickle_runs(tmp_path):
    (tmp_path / "flownet.pkl").write_bytes(pickle.dumps({"block0": Runs(tmp_path / "made")}, 2))
    with refused("torch_files._Reader.find_class", "flownet.pkl", "permitted: tensors"):
        parameters(tmp_path / "flownet.pkl")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("height, width", [(37, 50), (64, 32)])
def test_frames_of_any_size_are_the_mean_where_the_network_finds_nothing(height, width):
    """Zeros fill them up on the right and below, and are cut off again."""
    arrays = {name: np.zeros_like(array) for name, array in random_tensors(0, 8).items()}
    video = videos(3, height, width)[0] * 1.5  # beyond [-1, 1] it is clipped, as decoded frames are
    found = interpolated(from_released(lazy(arrays.items()), "zeros", 8), video[:2], video[1:], 8)
    clipped = np.clip(video, -1, 1)
    np.testing.assert_allclose(found, (clipped[:2] + clipped[1:]) / 2, atol=1e-6)


def test_frames_are_smoothed_some_at_a_time_by_one_compiled_function(weights):
    """Each smoothed frame is what its pair alone makes, and no other one changes, however many there are."""
    between, video = by_network(weights), videos(13)
    seen = []

    def counted(ones, others):
        seen.append(len(ones))
        return between(ones, others)

    compiled = interpolation._jitted._cache_size
    even = smoothed(video, 30, counted)
    before = compiled()
    odd, short = smoothed(video, 31, counted), smoothed(video[:, :4], 31, counted)
    assert compiled() == before and seen == [4, 2, 4, 3, 2]
    assert changed(even[0], video[0]) == list(range(1, 12, 2)) and changed(odd[0], video[0]) == list(range(0, 13, 2))
    assert changed(short[0], video[0, :4]) == [0, 2]
    np.testing.assert_allclose(even[0, 5], between(video[0, 4:5], video[0, 6:7])[0], atol=1e-5)
    np.testing.assert_allclose(odd[0, 0], between(video[0, :1], video[0, 1:2])[0], atol=1e-5)
    np.testing.assert_allclose(odd[0, 12], between(video[0, 11:12], video[0, 12:])[0], atol=1e-5)
    assert np.abs(even - smoothed(video, 30, by_flow)).max() > 0.1 and np.abs(even[:, 1::2]).max() <= 1


def test_an_edit_by_the_network(generator, weights):
    """After the last of three steps, of number 2: frames of odd number differ from those by optical flow."""
    maps = np.random.default_rng(0).integers(0, 256, (1, 5, 32, 32, 3)).astype(np.uint8)
    sized = with_size(generator, 5, 32, 32)
    flow, network = (edit(sized, maps, "a three", method=ControlVideo(smooth=(1,), interpolator=path), control=maps,
                          steps=3, guidance=1.0, seed=4).videos[0] for path in (None, str(weights)))
    assert changed(network, flow) == [1, 3]


def test_frames_too_small_for_optical_flow_are_smoothed_and_opencv_is_not_needed(generator, weights, monkeypatch):
    stage, = with_size(generator, 3, 16, 16).stages()
    with refused("smoothing.size", "16x16"):
        ControlVideo().stage(stage)
    monkeypatch.setattr("vdm_jax.generation.editing.control_video.require_opencv", lambda: pytest.fail("asked for"))
    assert ControlVideo(interpolator=str(weights)).stage(stage).shape == stage.shape


def test_bad_files_are_refused_before_any_work(generator, tmp_path, monkeypatch):
    with refused("ControlVideo.interpolator", "ControlVideo.interpolator='x.pkl' with smooth=()", "steps in smooth"):
        ControlVideo(smooth=(), interpolator="x.pkl")
    method = ControlVideo(smooth=(1,), interpolator=str(tmp_path / "nowhere.pkl"))
    stage, = with_size(generator, 3, 32, 32).stages()
    with refused("interpolation.parameters", "nowhere.pkl: no such file"):
        method.stage(stage)
    write_square(tmp_path / "given.mp4", 3)
    monkeypatch.setattr(files, "_map_name", lambda stages, job: None)
    monkeypatch.setattr(files, "_frames", lambda *given: pytest.fail("it goes on"))
    with refused("interpolation.parameters", "nowhere.pkl: no such file"):
        files.edit_video(SimpleNamespace(stages=lambda first, last: (stage,)),
                         VideoJob(tmp_path / "given.mp4", "a three", method=method), folder=tmp_path / "kept")


def test_an_edit_does_not_go_on_with_other_weights(generator, tmp_path):
    path = write_weights(tmp_path / "x.safetensors", random_tensors(1))
    write_square(tmp_path / "given.mp4", 3)
    job = VideoJob(tmp_path / "given.mp4", "a three", method=ControlVideo(interpolator=str(path)))

    def begun():
        return files._frames(generator, job, generator.stages(), np.arange(3), tmp_path / "kept")

    begun().finish(1)
    assert begun().done == 1
    os.utime(path, ns=(1, 1))
    with refused("folder", "another request"):
        begun()


def test_the_command_reads_the_file_and_records_it(weights, tmp_path, monkeypatch, capfd):
    fails = refusals_of_commands(capfd)
    monkeypatch.chdir(tmp_path)
    write_square("given.mp4", 3)
    command = ["edit", "given.mp4", "--model", "nowhere", "--prompt", "a three", "--method", "controlvideo"]
    assert "flownet.pkl: no such file; permitted: a file of RIFE's" in fails(*command, "--interpolator", "flownet.pkl")
    assert "--interpolator=x.pkl with --method=sdedit; permitted: --method controlvideo" in fails(
        *command[:-1], "sdedit", "--interpolator", "x.pkl")
    os.link(weights, "made.mp4")
    assert "--out=made.mp4 is the file of --interpolator itself" in fails(
        *command, "--interpolator", "made.mp4", "--out", "made.mp4")
    command[3] = str(write_control(tmp_path / "control"))
    assert main([*command, "--height", "32", "--width", "32", "--steps", "2", "--control", "canny", "--smooth", "2",
                 "--interpolator", str(weights), "--out", "edited.mp4"]) == 0
    method = json.loads((tmp_path / "edited.json").read_text())["method"]["all"]
    assert method["interpolator"] == str(weights) and method["smooth"] == [2]
