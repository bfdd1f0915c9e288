"""Pictures as released image encoders and autoencoders take them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from vdm_jax.errors import UserError
from vdm_jax.networks.encoders.clip_vision import PIXEL_MEAN, PIXEL_STD

Picture = Any  # a path, a Pillow image, or an array; see `open_pictures`
GREYS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow's modes of 16-bit pictures


def open_pictures(pictures: Picture | Sequence[Picture]) -> list[Image.Image]:
    """One picture or several as upright 8-bit RGB images.

    A picture is a file, a Pillow image, or an array `[H, W]` (grey), `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`. Its type
    says what white is: 255 of 8 bits, 65,535 of 16 bits (Pillow's modes I;16 and I, uint16), 1 of floats (mode F), True
    of one bit. Transparency is dropped, CMYK and palettes become RGB. Files and Pillow images are turned as their EXIF
    data says.

    Raises `UserError` for what is none: other types and shapes, values beyond white or below black, NaN.
    """
    single = isinstance(pictures, str | os.PathLike | np.ndarray) or not isinstance(pictures, Sequence)
    return [_opened(picture) for picture in ([pictures] if single else pictures)]


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if not isinstance(picture, str | os.PathLike | Image.Image):
        raise UserError(f"image is a {type(picture).__name__}; permitted: a file, a Pillow image, or an array "
                        "[H, W, 3]")
    name = "a Pillow image" if isinstance(picture, Image.Image) else picture
    try:
        if isinstance(picture, Image.Image):
            return _upright(picture)
        with Image.open(pathlib.Path(picture)) as image:
            return _upright(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"image={name} is not a readable picture ({error}); permitted: a picture that Pillow "
                        "reads") from error


def _upright(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    return _of_array(np.asarray(image)) if image.mode in (*GREYS, "F") else image.convert("RGB")


def _of_array(pixels: np.ndarray) -> Image.Image:
    """An image of an array, whose type says what white is."""
    shape = pixels.shape
    if not (pixels.ndim == 2 or pixels.ndim == 3 and shape[-1] in (1, 3, 4)) or not pixels.size:
        raise UserError(f"image of shape {list(shape)}; permitted: [H, W], [H, W, 1], [H, W, 3], [H, W, 4]")
    kind, bits = pixels.dtype.kind, 8 * pixels.dtype.itemsize
    if (kind, bits) == ("u", 8):
        white = 255
    elif kind == "b":
        white = 1
    elif (kind, bits) in (("u", 16), ("i", 32)):  # Pillow holds 16 bits in 32 in mode I
        white = 65535
    elif kind == "f":
        white = 1.0
    else:
        raise UserError(f"image of type {pixels.dtype}; permitted: uint8, uint16, int32 of 16 bits, bool, floats in "
                        "[0, 1]")
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > white:
        raise UserError(f"image of type {pixels.dtype} with values from {pixels.min()} to {pixels.max()}; permitted: 0 "
                        f"to {white}")
    pixels = pixels.reshape(*shape[:2], -1)[..., :3]
    eight = pixels if white == 255 else np.round(pixels.astype(np.float64) * (255 / white)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(eight, (*shape[:2], 3))))


def resized(images: Sequence[Image.Image], height: int, width: int) -> Float[np.ndarray, "B H W 3"]:
    """Pictures in [-1, 1] of one size, by Lanczos' filter, whatever their aspect ratio."""
    pixels = [np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)) for image in images]
    return np.stack(pixels).astype(np.float32) / 127.5 - 1


def for_clip(images: Sequence[Image.Image], fields: Mapping[str, Any]) -> Float[np.ndarray, "B H W 3"]:
    """Pictures as CLIP sees them by the fields of a `preprocessor_config.json`: resized with a filter of Pillow so that
    the shorter side fits (or to a height and a width), cut in the middle, less the mean, over the standard deviation of
    pixels in [0, 1]. Raises `UserError` for sizes that are no numbers."""
    size, crop = fields.get("size", {"shortest_edge": 224}), fields.get("crop_size", 224)
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    mean, std = fields.get("image_mean", PIXEL_MEAN), fields.get("image_std", PIXEL_STD)
    found = []
    for image in images:
        try:
            if "shortest_edge" in size:
                short, sides = min(image.size), image.size
                sides = tuple(size["shortest_edge"] * side // short for side in sides)
            else:
                sides = size["width"], size["height"]
            image = image.resize(sides, fields.get("resample", Image.Resampling.BICUBIC))
            if fields.get("do_center_crop", True):
                left, top = (sides[0] - crop["width"]) // 2, (sides[1] - crop["height"]) // 2
                image = image.crop((left, top, left + crop["width"], top + crop["height"]))
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"preprocessor_config.json has size={size}, crop_size={crop}, resample="
                            f"{fields.get('resample')}; permitted: a shortest_edge, or height and width, in pixels, "
                            "and a filter of Pillow") from error
        found.append(np.asarray(image).astype(np.float32) / 255)
    return ((np.stack(found) - np.asarray(mean)) / np.asarray(std)).astype(np.float32)


def for_encoder(
    images: Sequence[Image.Image], size: int, mean: Sequence[float], std: Sequence[float]
) -> Float[np.ndarray, "B size size 3"]:
    """Pictures as the image encoder of Stable Video Diffusion sees them: blurred, sampled, less `mean`, over `std`.

    The blur is a Gaussian whose width grows with the reduction; samples are bicubic, from corner to corner of the
    picture (Blattmann et al. 2023, arXiv 2311.15127, and its released code). `mean` and `std` are those of pixels in
    [0, 1].
    """
    found = []
    for image in images:
        pixels = np.asarray(image).astype(np.float64) / 255 * 2 - 1
        rows, columns = (_sampling(side, size) @ _blur(side, size) for side in pixels.shape[:2])
        found.append((np.einsum("yh,hwc,xw->yxc", rows, pixels, columns, optimize=True) + 1) / 2)
    return ((np.stack(found) - np.asarray(mean)) / np.asarray(std)).astype(np.float32)


def _blur(side: int, size: int) -> Float[np.ndarray, "side side"]:
    """The Gaussian blur of a line of pixels as a matrix; beyond its ends the line is mirrored."""
    sigma = max((side / size - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3)) // 2 * 2 + 1
    reach = taps // 2
    if reach >= side:
        raise UserError(f"image with a side of {side} pixels; permitted: {reach + 1} or more")
    offsets = np.arange(taps) - reach
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    places = np.arange(side)[:, None] + offsets
    places = np.where(places < 0, -places, places)
    places = np.where(places >= side, 2 * (side - 1) - places, places)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], places), weights / weights.sum())
    return matrix


def _sampling(side: int, size: int) -> Float[np.ndarray, "size side"]:
    """Bicubic samples of a line of pixels, ends at ends, as a matrix (Keys 1981, with a = -0.75)."""
    at = np.linspace(0, side - 1, size)
    first = np.floor(at).astype(int)
    matrix = np.zeros((size, side))
    for tap in range(-1, 3):
        far = np.abs(at - (first + tap))
        near = (1.25 * far - 2.25) * far**2 + 1
        beyond = -0.75 * (far**3 - 5 * far**2 + 8 * far - 4)
        place = np.clip(first + tap, 0, side - 1)
        np.add.at(matrix, (np.arange(size), place), np.where(far <= 1, near, np.where(far < 2, beyond, 0.0)))
    return matrix
