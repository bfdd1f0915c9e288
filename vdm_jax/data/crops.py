"""How frames of another shape become frames of the shape asked for."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import UInt8

# "center": cut centrally to the aspect ratio; "random": cut anywhere; "pad": the whole frame with black borders;
# "squeeze": the whole frame, its aspect ratio changed.
Crop = Literal["center", "random", "pad", "squeeze"]


def crop_frames(
    frames: UInt8[np.ndarray, "T H W 3"], height: int, width: int, crop: Crop, place: tuple[float, float] = (0.5, 0.5)
) -> UInt8[np.ndarray, "T height width 3"]:
    """Frames resized to a size, area-averaged where they shrink and bilinear where they grow.

    Args:
      place: for "random", shares in [0, 1] of the room there is, down and to the right: the same for all frames.
    """
    from PIL import Image

    rows, columns = frames.shape[1:3]
    ratio = min(height / rows, width / columns) if crop == "pad" else max(height / rows, width / columns)
    scaled = (height, width) if crop == "squeeze" else (_scaled(rows, ratio, height, crop),
                                                        _scaled(columns, ratio, width, crop))
    shrinks = scaled[0] <= rows and scaled[1] <= columns
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    pictures = np.stack([np.asarray(Image.fromarray(frame).resize(scaled[::-1], method)) for frame in frames])
    if crop == "pad":
        found = np.zeros((len(frames), height, width, 3), np.uint8)
        top, left = (height - scaled[0]) // 2, (width - scaled[1]) // 2
        found[:, top : top + scaled[0], left : left + scaled[1]] = pictures
        return found
    share = (0.5, 0.5) if crop == "center" else place
    top, left = round(share[0] * (scaled[0] - height)), round(share[1] * (scaled[1] - width))
    return pictures[:, top : top + height, left : left + width]


def _scaled(pixels: int, ratio: float, wanted: int, crop: Crop) -> int:
    """A side after scaling: at most (padded) or at least (cut) the one asked for, and never nothing."""
    size = max(1, round(pixels * ratio))
    return min(size, wanted) if crop == "pad" else max(size, wanted)
