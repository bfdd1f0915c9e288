"""AV-Align (Yariv et al. 2024, arXiv 2309.16429): whether what is heard and what moves begin together.

Peaks of sound are onsets, peaks of the picture local maxima of the mean optical flow (Farneback's, as published). The
score is the share of peaks that have a partner within one frame: matches / (sounds + motions - matches).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.errors import UserError
from vdm_jax.metrics.flow import farneback
from vdm_jax.metrics.onsets import onsets

LEAST_MOTION = 0.1  # pixels a frame that a peak of the picture has at least; the code was also published without it
_RATES = (1e-3, 1e6)  # frames a second; beyond them the times of peaks lose their digits


def av_align(sound: Float[np.ndarray, " N"], video: UInt8[np.ndarray, "T H W 3"], fps: float, *,
             least_motion: float = LEAST_MOTION) -> float:
    """The score of a video and its sound (mono, `onsets.RATE`): 0 to 1, or NaN where neither has a peak."""
    return matched(onsets(sound), motion_peaks(video, fps, least_motion), fps)


def motion_peaks(video: UInt8[np.ndarray, "T H W 3"], fps: float, least_motion: float = LEAST_MOTION,
                 ) -> Float[np.ndarray, " M"]:
    """Seconds at which the mean flow from the frame before is larger than at both neighbours.

    Raises `UserError` for other videos, for those of fewer than three frames, and for a rate that is no number above 0.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or len(video) < 3:
        raise UserError(f"peaks of the motion of {video.dtype} {list(video.shape)}; permitted: uint8 [T, H, W, 3], T "
                        "from 3 frames")
    _check_rate(fps)
    strength = [float(np.linalg.norm(farneback(*pair), axis=-1).mean()) for pair in itertools.pairwise(video)]
    return local_maxima(np.array([strength[0], *strength]), least_motion) / fps


def local_maxima(values: Float[np.ndarray, " T"], least: float) -> np.ndarray:
    """Places, without the ends, that are larger than both neighbours and at least `least`."""
    inner = values[1:-1]
    return np.flatnonzero((inner > values[:-2]) & (inner > values[2:]) & (inner >= least)) + 1


def matched(
    sounds: Float[np.ndarray, " N"] | Sequence[float], motions: Float[np.ndarray, " M"] | Sequence[float], fps: float
) -> float:
    """The score of peaks in seconds, NaN where there are none. A peak of sound that has one of the picture less than a
    frame away is a match. Raises `UserError` for a rate that is no number above 0."""
    _check_rate(fps)
    near = np.abs(np.asarray(sounds)[:, None] - np.asarray(motions)[None]) < 1 / fps
    matches, union = int(near.any(1).sum()), len(sounds) + len(motions) - int(near.any(1).sum())
    return matches / union if union else math.nan


def _check_rate(fps: float) -> None:
    if not _RATES[0] <= fps <= _RATES[1]:
        raise UserError(f"fps={fps} is not valid; permitted: {_RATES[0]:g} to {_RATES[1]:g} frames a second")
