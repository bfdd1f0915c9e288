"""Tune-A-Video through the commands: tuned on one video, which is then edited from its inverted latents."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import vdm_jax
from tests.commands.tiny_tune import IMAGE
from tests.training.latents import AUTOENCODER, write_model
from vdm_jax.commands.main import main
from vdm_jax.parallel.rules import path_name
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video

pytestmark = pytest.mark.full
TINY = str(Path(__file__).parent / "tiny_tune.py")


def test_one_video_is_tuned_and_edited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unet = write_model(tmp_path / "unet.safetensors", IMAGE)
    write_model(tmp_path / "autoencoder.safetensors", dataclasses.replace(AUTOENCODER, scale=1.7))
    video = np.full((8, 16, 16, 3), 30, np.uint8)
    for frame in range(8):
        video[frame, 4:12, frame : frame + 8] = 220
    write_video(tmp_path / "videos" / "square.mp4", video, 8, lossless=True)
    assert main(["train", TINY, "--run", "run"]) == 0
    before = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(unet.params)}
    params = vdm_jax.load("run", jax.devices()[:1]).params["base"]
    after = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    tuned = {name for name, leaf in before.items() if np.abs(after[name] - leaf).max() > 1e-6}
    assert tuned == {name for name in before if re.search(r"/(self|cross)_attention/query/", name)}
    assert np.abs(after["/middle_transformer/space/temporal_attention/out/kernel"]).max() > 1e-4  # began with zeros
    assert main(["edit", "videos/square.mp4", "--model", "run", "--method", "tune_a_video", "--round-trip", "--out",
                 "made.mp4"]) == 0
    record = json.loads((tmp_path / "made.json").read_text())
    assert record["method"]["all"] == {"name": "tune_a_video", "strength": 1.0, "refinements": 0}
    assert record["notes"] == []  # it was tuned
    with VideoReader("made.mp4") as made:
        assert len(made) == 8
