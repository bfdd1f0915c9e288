"""Frames of one file in the size of a clip, and control maps next to videos."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.data.test_video_folder import numbered_video, spec_of
from tests.refusals import refused
from vdm_jax.data.decoding import read_frames
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.data.video_folder import VideoFolderSource
from vdm_jax.video.writing import write_png, write_video


@pytest.fixture(autouse=True)
def cache_elsewhere(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def levels(frames):
    return np.round(frames.mean((1, 2, 3)) / 4).astype(int).tolist()


def test_a_video_is_read_at_a_rate_a_picture_held_and_a_folder_counted(tmp_path):
    write_video(tmp_path / "a.mp4", numbered_video(12), fps=12, lossless=True)
    found = read_frames(tmp_path / "a.mp4", 5, 8, 16, 6.0)
    assert found.shape == (5, 8, 16, 3) and levels(found) == [0, 2, 4, 6, 8]
    write_png(tmp_path / "p" / "frame_9.png", np.full((8, 8, 3), 36, np.uint8))
    write_png(tmp_path / "p" / "frame_10.png", np.full((8, 8, 3), 40, np.uint8))
    assert levels(read_frames(tmp_path / "p", 2, 4, 4, 6.0)) == [9, 10]
    assert levels(read_frames(tmp_path / "p" / "frame_9.png", 3, 4, 4, 6.0)) == [9, 9, 9]
    with refused("decoding.frames", "a.mp4", "1 s", "1.33 s", "8 frames at 6"):
        read_frames(tmp_path / "a.mp4", 8, 4, 4, 6.0)
    with refused("decoding.frames", "p has 2 pictures", "at least 3"):
        read_frames(tmp_path / "p", 3, 4, 4, 6.0)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with refused("image_folder.opened", "bad.png"):
        read_frames(tmp_path / "bad.png", 1, 4, 4, 6.0)


def test_maps_have_the_frames_and_the_window_of_their_videos(tmp_path):
    rng = np.random.default_rng(0)
    video = np.repeat(np.repeat(rng.integers(0, 256, (12, 4, 6, 3)), 8, 1), 8, 2).astype(np.uint8)
    for name, frames in (("a", 12), ("deep/b", 9), ("short", 12), ("none", 12)):
        write_video(tmp_path / "videos" / f"{name}.mp4", video[:frames], fps=10, lossless=True)
    write_video(tmp_path / "maps" / "a.mp4", video, fps=10, lossless=True)
    write_png(tmp_path / "maps" / "deep" / "b.png", video[0])
    write_video(tmp_path / "maps" / "short.mp4", video[:7], fps=10, lossless=True)
    spec = spec_of(tmp_path / "videos", controls=str(tmp_path / "maps"), crop="random", frames=4, frame_stride=2)
    source = VideoFolderSource(spec)
    assert "7 frames for 12" in source.skipped["short.mp4"] and "no control map none.*" in source.skipped["none.mp4"]
    assert len(source) == 2
    for clip in (source[0], source.clip(0, rng), source.clip_at(0, rng, 5.0, 4)):
        assert clip["control"].shape == (4, 16, 16, 3)
        np.testing.assert_array_equal(clip["control"], clip["video"])
    held = source[1]
    assert (held["control"] == held["control"][:1]).all()
    np.testing.assert_allclose(held["control"][0].astype(int), held["video"][0], atol=2)
    batch = Pipeline(source, batch_size=2, seed=0).batch(0)
    assert batch["control"].shape == (2, 4, 16, 16, 3) and batch["control"].dtype == np.uint8
    (tmp_path / "empty").mkdir()
    with refused("VideoFolder.controls", "empty"):
        VideoFolderSource(dataclasses.replace(spec, controls=str(tmp_path / "empty")))
