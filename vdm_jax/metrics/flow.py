"""Motion by optical flow: how much there is, and whether frames are what motion makes of their neighbours.

The flow is OpenCV's DIS (Kroeger et al. 2016, arXiv 1603.03590), which needs no weights. Published warp errors use
learned flows and are of another size.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vdm_jax.errors import UserError, require_package

LEAST_SIDE = 32  # pixels; the coarsest level of smaller frames has no room for a patch


def flow(one: UInt8[np.ndarray, "H W 3"], other: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 2"]:
    """Where each pixel of a frame is in another one: displacement (x, y) in pixels."""
    cv2 = opencv()
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (one, other)]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)


def farneback(one: UInt8[np.ndarray, "H W 3"], other: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 2"]:
    """The same by polynomial expansion (Farneback 2003), with the settings of the published AV-Align."""
    cv2 = opencv()
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (one, other)]
    return cv2.calcOpticalFlowFarneback(*grey, None, pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5,
                                        poly_sigma=1.2, flags=0)


def visible(forward: Float[np.ndarray, "H W 2"], backward: Float[np.ndarray, "H W 2"]) -> Bool[np.ndarray, "H W"]:
    """Where a pixel is found again: it stays within the frame, and forth and back leads to where it was, by the bound
    of Sundaram et al. 2010."""
    returned = warped(backward, forward)
    bound = 0.01 * ((forward**2).sum(-1) + (returned**2).sum(-1)) + 0.5
    height, width = forward.shape[:2]
    x, y = np.arange(width) + forward[..., 0], np.arange(height)[:, None] + forward[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside & (((forward + returned) ** 2).sum(-1) < bound)


def warped(frame: np.ndarray, along: Float[np.ndarray, "H W 2"]) -> Float[np.ndarray, "H W C"]:
    """A frame as seen from where each pixel came from: its value at pixel + flow, between pixels by interpolation."""
    cv2 = opencv()
    height, width = along.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(frame.astype(np.float32), x + along[..., 0], y + along[..., 1], cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REPLICATE)


def motion(videos: UInt8[np.ndarray, "N T H W 3"]) -> Float[np.ndarray, " N"]:
    """Mean length of the flow between consecutive frames, pixels a frame."""
    _checked(videos)
    return np.array([np.mean([np.linalg.norm(flow(*pair), axis=-1).mean() for pair in itertools.pairwise(video)])
                     for video in videos])


def warp_error(
    videos: UInt8[np.ndarray, "N T H W 3"], guides: UInt8[np.ndarray, "N T H W 3"] | None = None,
) -> Float[np.ndarray, " N"]:
    """Mean squared difference, pixels in [0, 1], of each frame and the next one moved back along the flow, where pixels
    are found again (Lai et al. 2018, arXiv 1808.00449). A video of still frames has none, so it says little without
    `motion` next to it. The flow is that of `guides`, the videos that were edited, or else of the videos themselves.
    """
    _checked(videos)
    guides = videos if guides is None else guides
    if guides.shape != videos.shape:
        raise UserError(f"guides of shape {list(guides.shape)} for videos {list(videos.shape)}; permitted: one shape")
    return np.array([_warp_error(*pair) for pair in zip(videos, guides, strict=True)])


def _warp_error(video: np.ndarray, guide: np.ndarray) -> float:
    total = count = 0.0
    for place in range(len(video) - 1):
        forward, backward = flow(guide[place], guide[place + 1]), flow(guide[place + 1], guide[place])
        seen = visible(forward, backward)
        moved = warped(video[place + 1], forward)
        total += (((video[place] - moved) / 255) ** 2).mean(-1)[seen].sum()
        count += seen.sum()
    return total / count if count else float("nan")


def _checked(videos: np.ndarray) -> None:
    fits = videos.dtype == np.uint8 and videos.ndim == 5 and videos.shape[-1] == 3 and len(videos)
    if not fits or videos.shape[1] < 2 or min(videos.shape[2:4]) < LEAST_SIDE:
        raise UserError(f"optical flow of {videos.dtype} {list(videos.shape)}; permitted: uint8 [N, T, H, W, 3], T "
                        f"from 2 frames, H and W from {LEAST_SIDE} pixels")


def require_opencv() -> None:
    """Raise `UserError` naming the extra when OpenCV is not installed."""
    require_package("optical flow", "cv2", "metrics")


def opencv() -> Any:
    """OpenCV's module. Raises `UserError` as `require_opencv`."""
    require_opencv()
    import cv2

    return cv2
