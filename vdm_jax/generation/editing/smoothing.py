"""The interleaved-frame smoother of ControlVideo (Zhang et al. 2023, arXiv 2305.13077, section 3.2): every other frame
of an estimate becomes what lies halfway between its neighbours, so that neighbours no longer flicker.

The authors interpolate by a network (RIFE), as `interpolation.py` does with a file of its weights. Without such a file
frames are interpolated by the optical flow of OpenCV (DIS), which needs no weights.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.errors import UserError
from vdm_jax.generation.editing.interpolation import AT_A_TIME, Between
from vdm_jax.generation.editing.parts import each_row
from vdm_jax.metrics.flow import LEAST_SIDE, flow, visible, warped
from vdm_jax.video.arrays import check_finite, to_uint8

HIDDEN = 1e-3  # weight of a pixel that is not found again, against 1: it counts where both frames hide it


def halfway(one: UInt8[np.ndarray, "H W 3"], other: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """The frame halfway between two, in [0, 255]: each moved half the way, and their mean where both are seen.

    The flow from the middle to either is half the mean of the flows between them (Jiang et al. 2018, arXiv 1712.00080,
    eq. 4 at t = 1/2), and pixels count where forth and back leads to where they were (eq. 5).
    """
    forward, backward = flow(one, other), flow(other, one)
    to_one, to_other = (backward - forward) / 4, (forward - backward) / 4
    total = np.zeros((*one.shape[:2], 4), np.float32)  # colours times weight, and weight
    seen = visible(forward, backward), visible(backward, forward)
    for frame, along, mask in zip((one, other), (to_one, to_other), seen, strict=True):
        moved = warped(np.dstack([frame, mask]), along)
        weight = moved[..., 3:] + HIDDEN
        total += np.dstack([moved[..., :3] * weight, weight])
    return total[..., :3] / total[..., 3:]


def by_flow(ones: Float[np.ndarray, "N H W 3"], others: Float[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N H W 3"]:
    """The frames in [-1, 1] halfway between others, by the optical flow of their 8-bit frames. Raises `UserError` for
    frames that are too small for it."""
    check_sides(*ones.shape[1:3])
    pairs = zip(to_uint8(ones), to_uint8(others), strict=True)
    return np.stack([halfway(one, other) / 127.5 - 1 for one, other in pairs])


def smoothed(
    videos: Float[np.ndarray, "B T H W 3"], step: int, between: Between = by_flow
) -> Float[np.ndarray, "B T H W 3"]:
    """Videos in [-1, 1] with every other frame halfway `between` its neighbours: after a step of even number the frames
    of odd number, and the other way round. As in the authors' code, frames of even number at an end of the video come
    halfway between themselves and their one neighbour, and one of odd number there stays."""
    check_finite(videos, "the videos to smooth")
    result, last = np.array(videos, np.float32), videos.shape[1] - 1
    middles = np.arange(0, last + 1, 2) if step % 2 else np.arange(1, last, 2)

    def halfway_frames(video: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "N H W 3"]:
        done = []
        for first in range(0, len(middles), AT_A_TIME):
            some = middles[first : first + AT_A_TIME]
            done.append(between(video[np.maximum(some - 1, 0)], video[np.minimum(some + 1, last)]))
        return np.concatenate(done)

    if len(middles):
        result[:, middles] = np.stack(each_row(halfway_frames, videos))
    return result


def check_sides(height: int, width: int) -> None:
    """Raise `UserError` for frames that are too small for optical flow."""
    if min(height, width) < LEAST_SIDE:
        raise UserError(f"smoother on frames of {height}x{width}; permitted: sides from {LEAST_SIDE} pixels, or no "
                        "smoother", "smoothing.size")
