"""Depth from files that another program made, as grey: the least value black and the largest white."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vdm_jax.annotation.frames import check_count, numbered_files, place_of
from vdm_jax.configuration import config
from vdm_jax.data.image_folder import opened
from vdm_jax.errors import UserError
from vdm_jax.video.reading import VideoReader

_GREY = ("I;16", "I;16B", "I", "L", "F")  # Pillow's words for pictures of one number per pixel


@config
class Depth:
    """Depth of each video: a folder of its name with a .png (8 or 16 bits of grey) or .npy [H, W] for each frame, or
    one NAME.npy [T, H, W]. Maps may have another size than the frames."""

    depth: str  # folder of these
    # What black and white are: the extremes of the video, so that a depth keeps its grey, or of each frame
    range: Literal["video", "frame"] = "video"
    invert: bool = False  # for values that grow with the distance: near is white in what networks were trained on

    def check(self) -> None:
        """Nothing is needed."""

    def frames(self, video: VideoReader, name: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The depth of each frame."""
        place = place_of(self.depth, name, suffixes=(".npy",))
        count, read = _maps(place)
        check_count(place, "maps of depth", count, len(video))
        height, width = video.frames([0]).shape[1:3]
        extremes = [(float(one.min()), float(one.max())) for one in map(read, range(count))]
        if self.range == "video":
            extremes = [(min(low for low, _ in extremes), max(high for _, high in extremes))] * count
        for number, (low, high) in enumerate(extremes):
            grey = (read(number) - low) / max(high - low, 1e-12)
            grey = np.asarray(Image.fromarray(grey.astype(np.float32)).resize((width, height),
                                                                               Image.Resampling.BILINEAR))
            levels = np.rint(255 * np.clip(1 - grey if self.invert else grey, 0, 1)).astype(np.uint8)
            yield np.repeat(levels[..., None], 3, axis=-1)


def _maps(place: Path) -> tuple[int, Callable[[int], Float[np.ndarray, "H W"]]]:
    """How many maps there are, and what reads one."""
    if place.is_dir():
        files = numbered_files(place, ".npy") or numbered_files(place, ".png")
        return len(files), lambda number: read_map(files[number])
    array = _array(place, 3)
    return len(array), lambda number: _checked(place, array[number])


def read_map(path: Path) -> Float[np.ndarray, "H W"]:
    """One map. Raises `UserError` naming the file for what is none."""
    if path.suffix.lower() == ".npy":
        return _checked(path, _array(path, 2))
    try:
        with opened(path) as image:
            if image.mode not in _GREY:
                raise UserError(f"a picture of mode {image.mode}; permitted: grey, of 8 or 16 bits")
            return _checked(path, np.asarray(image))
    except UserError as error:
        raise UserError(f"{path}: {error}", "annotation.depth") from error


def _array(path: Path, axes: int) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path}: not a readable array ({error})", "annotation.depth") from error
    if array.ndim != axes or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise UserError(f"{path}: {array.dtype} {list(array.shape)}; permitted: numbers "
                        f"[{', '.join('THW'[-axes:])}]", "annotation.depth")
    return array


def _checked(path: Path, values: np.ndarray) -> Float[np.ndarray, "H W"]:
    values = np.array(values, np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: {int((~np.isfinite(values)).sum())} values are NaN or infinite; permitted: finite "
                        "depth", "annotation.depth")
    return values
