"""Still pictures to a given size: cut centrally to the aspect ratio, and resized."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


def fit_image(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """A Pillow image as RGB pixels: turned upright by its EXIF tag, cut centrally, area-averaged (or bilinear if the
    picture is enlarged)."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    if upright.size == (width, height):
        return np.asarray(upright)
    shrinks = upright.width >= width and upright.height >= height
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(ImageOps.fit(upright, (width, height), method=method))


def fit_frame(frame: UInt8[np.ndarray, "H W C"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """`fit_image` of an array with 1 (grey) or 3 channels."""
    frame = np.asarray(frame)
    return fit_image(Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame), height, width)


def fit_square(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """An RGB picture as CLIP sees it: its shorter side made `size` pixels by Pillow's bicubic filter, which averages
    where it shrinks, then the middle square."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    picture = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return picture[top : top + size, left : left + size]
