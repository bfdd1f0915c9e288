"""The demo's pictures: two videos side by side."""

from __future__ import annotations

import numpy as np

from experiments.demo.side_by_side import side_by_side
from tests.refusals import refused
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video


def test_two_videos_stand_side_by_side_for_as_long_as_both_last(tmp_path):
    black, white = np.zeros((4, 64, 96, 3), np.uint8), np.full((3, 64, 64, 3), 255, np.uint8)
    left, right = write_video(tmp_path / "a.mp4", black, 4), write_video(tmp_path / "b.mp4", white, 8)
    out = side_by_side(left, "weights that ship", right, "trained just now", tmp_path / "both.mp4")
    with VideoReader(out) as video:
        frame = video.frames([0])[0].astype(int)
        assert len(video) == 3 and abs(video.fps - 4) < 0.1
    assert frame[-32:, 8:88].max() < 40 and frame[-32:, 110:].min() > 215  # under titles in black on white
    assert frame[:16, :96].min() < 80 and frame[:16, :96].max() > 215
    with refused("reading.VideoReader._open", "none.mp4"):
        side_by_side(tmp_path / "none.mp4", "a", right, "b", tmp_path / "no.mp4")
    assert not (tmp_path / "no.mp4").exists()
