"""A ControlNet through the commands: from a folder of videos and the weights of an image U-Net to videos that follow
the edges of another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import vdm_jax
from tests.commands.tiny_control import IMAGE
from tests.training.latents import AUTOENCODER, write_model
from vdm_jax.commands.main import main
from vdm_jax.parallel.rules import path_name
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png, write_video

pytestmark = pytest.mark.full
TINY = str(Path(__file__).parent / "tiny_control.py")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, weights and the trained run, and the U-Net's parameters."""
    home, rng = tmp_path_factory.mktemp("control"), np.random.default_rng(0)
    unet = write_model(home / "unet.safetensors", IMAGE)
    write_model(home / "autoencoder.safetensors", dataclasses.replace(AUTOENCODER, scale=1.7))
    for number in range(12):  # squares that move
        video = np.full((8, 16, 16, 3), 30, np.uint8)
        top, left = rng.integers(0, 8, 2)
        for frame in range(8):
            video[frame, top : top + 8, (left + frame) % 8 : (left + frame) % 8 + 8] = rng.integers(120, 255, 3)
        write_video(home / "videos" / f"{number}.mp4", video, 8, lossless=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["train", TINY, "--run", "run"]) == 0
    return home, unet.params


def test_the_base_is_frozen_and_the_branch_learns(home, monkeypatch):
    folder, unet = home
    monkeypatch.chdir(folder)
    params = vdm_jax.load("run", jax.devices()[:1]).params["base"]
    base = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(unet)}
    inside = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, leaf in base.items():
        np.testing.assert_array_equal(inside.pop(name), leaf)
    assert inside and all(name.startswith("/control_net_edges/") for name in inside)
    for name in ("/control_0/kernel", "/control_middle/kernel", "/hint/out/kernel"):  # began with zeros
        assert np.abs(inside[f"/control_net_edges{name}"]).max() > 1e-4
    copy = inside["/control_net_edges/middle_in/residual/conv_in/kernel"] - base["/middle_in/residual/conv_in/kernel"]
    assert 0 < np.abs(copy).max() < 0.2  # began as a copy
    assert (folder / "run" / "base" / "samples" / "step_0000012.png").stat().st_size > 0


def test_a_map_changes_the_video_and_the_frames_that_it_is_of(home, monkeypatch):
    monkeypatch.chdir(home[0])
    for number in (0, 1):
        assert main(["sample", "run", "--control", f"videos/{number}.mp4", "--out", f"{number}.gif"]) == 0
    one, other = (VideoReader(f"{number}.gif").frames([0, 1]).astype(int) for number in (0, 1))
    assert one.shape == (2, 8, 8, 3) and np.abs(one - other).max() > 2
    generator = vdm_jax.load("run", jax.devices()[:1])
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 8, 8, 3)).astype(np.uint8)
    first = generator([""], edges=video).videos.astype(int)
    later = video.copy()
    later[:, 1] = 0  # temporal attention sees the first and the previous one
    changed = np.abs(generator([""], edges=later).videos - first).max((0, 2, 3, 4))
    assert changed[0] == 0 and changed[1] > 2


def test_files_of_every_kind_and_longer_videos(home, monkeypatch, fails):
    monkeypatch.chdir(home[0])
    arguments = ["sample", "run", "--steps", "1"]
    write_png("square.png", np.pad(np.full((4, 4, 3), 255, np.uint8), ((2, 2), (2, 2), (0, 0))))
    for frame in range(4):
        write_png(f"pictures/{frame}.png", np.full((8, 8, 3), 60 * frame, np.uint8))
    assert main([*arguments, "--control", "square.png", "pictures", "--count", "2", "--out", "a.gif"]) == 0
    longer = [*arguments, "--overlap", "1", "--method", "replacement", "--out", "b.gif"]
    assert main([*longer, "--frames", "4", "--control", "videos/0.mp4"]) == 0
    assert len(VideoReader("b.gif")) == 4
    assert "pictures has 4 pictures" in fails(*longer, "--frames", "5", "--control", "pictures")
    assert "--control=none.mp4 does not exist" in fails(*arguments, "--control", "none.mp4")
    assert "edges of shape [] given for stage 'base'" in fails(*arguments)
