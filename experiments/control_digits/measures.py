"""What is measured of controlled clips, each a number for each clip: pixels are those of the clips as they are drawn,
64 a side, to which the videos of the network are enlarged."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from scipy.ndimage import distance_transform_edt

from experiments.digit_rows import Videos
from experiments.editing.run import centres
from vdm_jax.digits.clips import DigitClip
from vdm_jax.digits.controls import edges, middles
from vdm_jax.video.arrays import resize, subsample_frames, to_float, to_uint8

TOLERANCE = 2.0  # pixels of 64, half a pixel of the network, within which edges are the same


def enlarged(videos: Videos, side: int) -> Videos:
    """Videos as they are looked at, between whose pixels is interpolated."""
    return np.asarray(to_uint8(resize(to_float(jnp.asarray(videos)), side, side, "bilinear")))


def as_made(clips: Sequence[DigitClip], frames: int, side: int) -> Videos:
    """Real clips in the frames and the size of the network."""
    videos = subsample_frames(to_float(jnp.asarray(np.stack([clip.video for clip in clips]))), frames)
    return np.asarray(to_uint8(resize(videos, side, side, "area")))


def trajectory_errors(videos: Videos, clips: Sequence[DigitClip]) -> Float[np.ndarray, " N"]:
    """Mean distance, pixels, from the middle of the box around the digit to the middle of its square on the path that
    was asked for, over the frames that show one; NaN where none does. Strokes do not fill their square evenly, so real
    clips have an error too."""
    paths = np.stack([middles(clip)[0] for clip in clips])
    errors = np.linalg.norm(centres(videos) - paths[:, :: paths.shape[1] // videos.shape[1]], axis=-1)
    shown = ~np.isnan(errors)
    return np.where(shown.any(1), np.where(shown, errors, 0).sum(1) / np.maximum(shown.sum(1), 1), np.nan)


def edge_f1(videos: Videos, real: Videos, tolerance: float = TOLERANCE) -> Float[np.ndarray, " N"]:
    """F1 of the edges of a video against those of the clip whose control it had, mean over frames: an edge pixel is
    right where the other has one within the tolerance. NaN where neither has any in a frame."""
    found = np.full(videos.shape[:2], np.nan)
    for i, pair in enumerate(zip(videos, real, strict=True)):
        for j, (ours, theirs) in enumerate(zip(*((edges(video)[..., 0] > 0) for video in pair), strict=True)):
            found[i, j] = _f1(ours, theirs, tolerance)
    return np.nanmean(found, axis=1)


def _f1(ours: Bool[np.ndarray, "H W"], theirs: Bool[np.ndarray, "H W"], tolerance: float) -> float:
    if not ours.any() or not theirs.any():
        return 0.0 if ours.any() or theirs.any() else float("nan")
    precision = (distance_transform_edt(~theirs)[ours] <= tolerance).mean()
    recall = (distance_transform_edt(~ours)[theirs] <= tolerance).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def with_interval(values: Float[np.ndarray, " N"]) -> dict[str, float]:
    """Mean over clips, half of its 95 % interval (Student's t) and how many clips have a value."""
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return {"mean": float("nan"), "half": float("nan"), "clips": 0}
    half = stats.t.ppf(0.975, len(kept) - 1) * kept.std(ddof=1) / len(kept) ** 0.5 if len(kept) > 1 else float("nan")
    return {"mean": float(kept.mean()), "half": float(half), "clips": len(kept)}
