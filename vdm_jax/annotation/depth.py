"""Depth as grey: the least value black and the largest white. It comes from files that another program made, or from a
released network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vdm_jax.annotation import depth_model
from vdm_jax.annotation.frames import check_count, numbered_files, place_of
from vdm_jax.configuration import config
from vdm_jax.data.image_folder import opened
from vdm_jax.errors import UserError
from vdm_jax.video.reading import VideoReader

_GREY = ("I;16", "I;16B", "I", "L", "F")  # Pillow's words for pictures of one number per pixel
Read = Callable[[int], Float[np.ndarray, "H W"]]
Resize = Callable[[Float[np.ndarray, "H W"], int, int], Float[np.ndarray, "H2 W2"]]


@config
class Depth:
    """Depth of each video. It comes from a folder of files or from a network, one of the two.

    Files: a folder of the video's name with a .png (8 or 16 bits of grey) or .npy [H, W] for each frame, or one
    NAME.npy [T, H, W]. Maps may have another size than the frames. A network: DPT, in a folder as transformers saves
    it. It predicts inverse depth as MiDaS does, so what is near is white without `invert`.
    """

    depth: str | None = None  # folder of files
    model: str | None = None  # folder of a network: `DPTForDepthEstimation`
    # What black and white are: the extremes of the video, so that a depth keeps its grey, or of each frame
    range: Literal["video", "frame"] = "video"
    invert: bool = False  # for values that grow with the distance: near is white in what networks were trained on

    def __post_init__(self):
        if (self.depth is None) == (self.model is None):
            raise UserError(f"Depth.depth={self.depth} with model={self.model}; permitted: one of the two, --depth "
                            "with a folder of files or --model with that of a network")

    def check(self) -> None:
        """Raise `UserError` where the model's folder is none; it is read anew."""
        if self.model is not None:
            depth_model.loaded.cache_clear()
            depth_model.loaded(self.model)

    def frames(self, video: VideoReader, name: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The depth of each frame."""
        height, width = video.frames([0]).shape[1:3]
        with self._maps(video, name) as (count, read, resize):
            extremes = [(float(one.min()), float(one.max())) for one in map(read, range(count))]
            if self.range == "video":
                extremes = [(min(low for low, _ in extremes), max(high for _, high in extremes))] * count
            for number, (low, high) in enumerate(extremes):
                grey = resize((read(number) - low) / max(high - low, 1e-12), height, width)
                levels = np.rint(255 * np.clip(1 - grey if self.invert else grey, 0, 1)).astype(np.uint8)
                yield np.repeat(levels[..., None], 3, axis=-1)

    @contextlib.contextmanager
    def _maps(self, video: VideoReader, name: str) -> Iterator[tuple[int, Read, Resize]]:
        """How many maps there are, what reads one, and what resizes it."""
        if self.model is not None:
            with depth_model.spilled(self.model, video) as maps:
                yield maps.count, maps.read, depth_model.bicubic
            return
        place = place_of(self.depth, name, suffixes=(".npy",))
        count, read = _maps(place)
        check_count(place, "maps of depth", count, len(video))
        yield count, read, _bilinear


def _bilinear(values: Float[np.ndarray, "H W"], height: int, width: int) -> Float[np.ndarray, "H2 W2"]:
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _maps(place: Path) -> tuple[int, Read]:
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
