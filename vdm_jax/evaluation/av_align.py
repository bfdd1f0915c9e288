"""AV-Align (Yariv et al. 2024, arXiv 2309.16429): whether what is heard and what moves begin together.

Peaks of sound are onsets, peaks of the picture local maxima of the mean optical flow (Farneback's, as published). The
score is the share of peaks that have a partner within one frame: matches / (sounds + motions - matches).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.errors import UserError
from vdm_jax.evaluation.flow import farneback
from vdm_jax.evaluation.onsets import onsets

LEAST_MOTION = 0.1  # pixels a frame that a peak of the picture has at least; the code was also published without it


def av_align(sound: Float[np.ndarray, " n"], video: UInt8[np.ndarray, "t h w 3"], fps: float, *,
             least_motion: float = LEAST_MOTION) -> float:
    """The score of a video and its sound (mono, `onsets.RATE`): 0 to 1, or NaN where neither has a peak."""
    return matched(onsets(sound), motion_peaks(video, fps, least_motion), fps)


def motion_peaks(video: UInt8[np.ndarray, "t h w 3"], fps: float, least_motion: float = LEAST_MOTION,
                 ) -> Float[np.ndarray, " k"]:
    """Seconds at which the mean flow from the frame before is larger than at both neighbours.

    Raises `UserError` for videos of fewer than three frames or smaller than the flow can see.
    """
    if video.ndim != 4 or len(video) < 3 or not fps > 0:
        raise UserError(f"peaks of the motion of {list(video.shape)} at {fps} frames a second; permitted: [T, H, W, "
                        "3], T from 3 frames")
    strength = [float(np.linalg.norm(farneback(*pair), axis=-1).mean()) for pair in itertools.pairwise(video)]
    return local_maxima(np.array([strength[0], *strength]), least_motion) / fps


def local_maxima(values: Float[np.ndarray, " t"], least: float) -> np.ndarray:
    """Places, without the ends, that are larger than both neighbours and at least `least`."""
    inner = values[1:-1]
    return np.flatnonzero((inner > values[:-2]) & (inner > values[2:]) & (inner >= least)) + 1


def matched(sounds: Float[np.ndarray, " a"], motions: Float[np.ndarray, " v"], fps: float) -> float:
    """The score of peaks in seconds. A peak of sound that has one of the picture less than a frame away is a match."""
    near = np.abs(np.asarray(sounds)[:, None] - np.asarray(motions)[None]) < 1 / fps
    matches, union = int(near.any(1).sum()), len(sounds) + len(motions) - int(near.any(1).sum())
    return matches / union if union else math.nan
