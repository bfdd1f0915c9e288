"""The interleaved-frame smoother of ControlVideo (Zhang et al. 2023, arXiv 2305.13077, section 3.2): every other frame
of an estimate becomes what lies halfway between its neighbours, so that neighbours no longer flicker.

The authors interpolate by a network (RIFE). Here it is the optical flow of OpenCV (DIS), which needs no weights.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.errors import UserError
from vdm_jax.metrics.flow import LEAST_SIDE, flow, visible, warped
from vdm_jax.video.arrays import to_uint8

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


def smoothed(videos: Float[np.ndarray, "B T H W 3"], step: int) -> Float[np.ndarray, "B T H W 3"]:
    """Videos in [-1, 1] with every other frame halfway between its neighbours: after a step of even number the frames
    of odd number, and the other way round. As in the authors' code, frames of even number at an end of the video come
    halfway between themselves and their one neighbour, and one of odd number there stays."""
    check_sides(*videos.shape[2:4])
    frames, result, count = np.asarray(to_uint8(videos)), np.array(videos, np.float32), videos.shape[1]
    for video in range(len(videos)):
        for middle in range(0, count, 2) if step % 2 else range(1, count - 1, 2):
            between = halfway(frames[video, max(middle - 1, 0)], frames[video, min(middle + 1, count - 1)])
            result[video, middle] = between / 127.5 - 1
    return result


def check_sides(height: int, width: int) -> None:
    """Raise `UserError` for frames that are too small for optical flow."""
    if min(height, width) < LEAST_SIDE:
        raise UserError(f"smoother on frames of {height}x{width}; permitted: sides from {LEAST_SIDE} pixels, or no "
                        "smoother", "smoothing.size")
