"""Rerender-A-Video with optical flow by GMFlow: wherever it takes flow, from Python and from the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.generation.editing.given import write_square
from tests.generation.editing.test_rerender import SHORT, clip, generator, made, three  # noqa: F401  (fixtures)
from tests.metrics.detectors.test_gmflow import random_tensors
from tests.pipelines.folders import write_control
from tests.refusals import refusals_of_commands, refused
from vdm_jax.commands.main import main
from vdm_jax.generation.editing.files import VideoJob, edit_video
from vdm_jax.generation.editing.rerender import Rerender
from vdm_jax.generation.editing.rerender_fusion import motion_to
from vdm_jax.metrics import flow_estimators
from vdm_jax.metrics.flow_estimators import BY_DIS, GMFlow
from vdm_jax.video.writing import write_video
from vdm_jax.weights.tensor_files import lazy, write_file


def write_weights(path, without=None, seed=0):
    write_file(path, lazy((name, array) for name, array in random_tensors(seed).items() if name != without), {})
    return str(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("flow") / "gmflow.safetensors")


def test_all_flow_is_the_network_s(generator, clip, three, file, monkeypatch):  # noqa: F811
    """Nothing asks DIS; every key frame but the first one and all others change; and with the flow of DIS in place of
    the network's the result is that of DIS."""
    def never(*_):
        raise AssertionError("DIS was asked")

    with monkeypatch.context() as patched:
        patched.setattr(flow_estimators, "flow", never)
        found = made(generator, clip, Rerender(interval=3, flow=file)).videos
    changed = np.abs(found.astype(int) - three.videos.astype(int)).max((0, 2, 3, 4))
    assert changed[0] <= 1 and (changed[1:] > 1).all(), changed
    for name in ("flow", "both", "seen"):
        monkeypatch.setattr(GMFlow, name, lambda self, *given, name=name: getattr(BY_DIS, name)(*given))
    np.testing.assert_array_equal(made(generator, clip, Rerender(interval=3, flow=file)).videos, three.videos)


def test_what_is_hidden_is_by_the_network_s_bound(file):
    one, other = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3)).astype(np.uint8)
    network = GMFlow(file)
    motion, (forward, backward) = motion_to(one, other, network), network.both(one, other)
    np.testing.assert_array_equal(motion.along, forward)
    np.testing.assert_array_equal(motion.hidden, ~network.seen(forward, backward))
    assert (motion.hidden != ~BY_DIS.seen(forward, backward)).any()


def test_a_wrong_file_is_refused_before_any_work(generator, clip, tmp_path):  # noqa: F811
    lossless = write_video(tmp_path / "given.mp4", clip[0], 4, lossless=True)
    lacking = write_weights(tmp_path / "lacking.safetensors", without="upsampler.0.bias")
    for path, code, said in ((str(tmp_path / "nowhere.pth"), "flow_estimators.read_weights", "no such file"),
                             (lacking, "gmflow.from_published", "'upsampler.0.bias'")):
        method = Rerender(interval=3, flow=path)
        with refused(code, path, said):
            made(generator, clip, method)
        job = VideoJob(lossless, "a three", method=method, maps=lossless, seed=SHORT["seed"])
        with refused(code, path, said):
            edit_video(generator, job, folder=tmp_path / "frames")
        assert not (tmp_path / "frames").exists()


def test_an_edit_goes_on_with_the_same_weights_alone(generator, clip, tmp_path):  # noqa: F811
    lossless = write_video(tmp_path / "given.mp4", clip[0], 4, lossless=True)
    path = write_weights(tmp_path / "weights.safetensors")
    job = VideoJob(lossless, "a three", method=Rerender(interval=3, flow=path), maps=lossless, seed=SHORT["seed"],
                   options={"steps": 2, "guidance": 1.0})
    assert edit_video(generator, job, folder=tmp_path / "frames", stop=lambda: True).finished == 4
    write_weights(tmp_path / "weights.safetensors", seed=1)
    with refused("folder", "frames of another request"):
        edit_video(generator, job, folder=tmp_path / "frames")


def test_the_command(tmp_path, monkeypatch, capfd, file):
    fails = refusals_of_commands(capfd)
    monkeypatch.chdir(tmp_path)
    folder = write_control(tmp_path / "control")
    write_square("given.mp4", 4)
    asked, both = [], GMFlow.both
    monkeypatch.setattr(GMFlow, "both", lambda self, *frames: asked.append(frames) or both(self, *frames))
    command = ["edit", "given.mp4", "--model", str(folder), "--prompt", "a three", "--method", "rerender",
               "--height", "32", "--width", "32", "--steps", "4", "--control", "canny", "--out", "made.mp4"]
    assert main([*command, "--interval", "2", "--flow", file]) == 0
    # Frame 2 in 0, 3 in 0 and 2; between the key frames 0 in 1 and 1 in 2, then 1 in 0 and in 2: no more where copies
    # of the video fill a batch up to the number of devices
    assert len(asked) == 7 and len({tuple(frame.tobytes() for frame in frames) for frames in asked}) == 6
    assert json.loads((tmp_path / "made.json").read_text())["method"]["all"]["flow"] == file
    unloaded = [*command[:2], "--model", "nowhere", *command[4:]]  # refused before a model is looked for
    assert "other.pth: no such file; permitted: GMFlow's weights" in fails(*unloaded, "--flow", "other.pth")
    assert f"--flow={file} with --method=ddim; permitted: --method rerender" in fails(
        *command, "--method", "ddim", "--flow", file)
