"""Moving MNIST: the published test videos, and training videos generated from digits; see `published.MovingMNIST`."""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vdm_jax.data.folder import in_range
from vdm_jax.data.published_set import PublishedSet
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.data.tfds_video import TFDSVideo, TFDSVideoSource, open_tfds_items
from vdm_jax.data.whole_videos import WholeVideos, require_span
from vdm_jax.errors import UserError

TEST_FILE, DIGITS_FILE = "mnist_test_seq.npy", "train-images-idx3-ubyte"
MAX_IDX_BYTES = 2**28  # of the digits, unpacked; the authors' have 47 MB
FRAMES, SIZE, DIGITS = 20, 64, 2  # of a video
# Of the way a digit has in the frame, per frame: the default of TFDS, `video/moving_sequence.py`.
SPEED = 0.1


def open_moving_mnist(spec: PublishedSet, split: str) -> RandomAccessSource:
    """The clips of one split: generated ones, or those of the test file."""
    require_span(spec, FRAMES, spec.frames)
    if spec.parts(split) == ("train",):
        return MovingDigitsSource(spec, split)
    if spec.via == "tfds":
        return TFDSVideoSource(TFDSVideo(name="moving_mnist", data_dir=str(spec.folder), frames=spec.frames,
                                         height=spec.height, width=spec.width, frame_stride=spec.frame_stride,
                                         splits=("test", "test", "test")), split)
    return MovingMNISTSource(spec, split)


class MovingMNISTSource(WholeVideos):
    """The videos of `mnist_test_seq.npy`, uint8 `[20, videos, 64, 64]`, mapped into memory."""

    def __init__(self, spec: PublishedSet, split: str):
        super().__init__(spec, split)
        if not (spec.folder / TEST_FILE).is_file():
            raise spec.missing(f"{TEST_FILE} is missing")
        shape, dtype = self._array.shape, self._array.dtype
        if len(shape) != 4 or shape[0] != FRAMES or shape[2:] != (SIZE, SIZE) or dtype != np.uint8:
            raise UserError(f"{spec.folder / TEST_FILE} holds {dtype} {list(shape)}; permitted: uint8 [{FRAMES}, "
                            f"videos, {SIZE}, {SIZE}]")

    @functools.cached_property
    def _array(self) -> np.ndarray:
        path = self.spec.folder / TEST_FILE
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header can fail in any way
            raise UserError(f"{path} is damaged or no array ({error}); permitted: the authors' whole file") from error

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_array"}

    def __len__(self) -> int:
        return self._array.shape[1]

    def video(self, index: int) -> np.ndarray:
        """All frames of a video, uint8 `[20, 64, 64, 1]`."""
        return np.asarray(self._array[:, index, :, :, None])


class MovingDigitsSource(WholeVideos):
    """Generated videos: video i always the same, `clip` and `frame` a new one each time."""

    def __init__(self, spec: PublishedSet, split: str):
        super().__init__(spec, split)
        self._digits = _digits(spec)

    def __len__(self) -> int:
        return self.spec.train_videos

    def video(self, index: int) -> np.ndarray:
        """All frames of a video, uint8 `[20, 64, 64, 1]`."""
        return moving_digits(self._digits, np.random.default_rng(index))

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip that no other draw gives; the number does not matter."""
        in_range(index, len(self))
        video = moving_digits(self._digits, rng)
        return self._cut(video, self.spec.frames, lambda room: int(rng.integers(room + 1)))


def moving_digits(digits: UInt8[np.ndarray, "N H W"], rng: np.random.Generator) -> UInt8[np.ndarray, "20 64 64 1"]:
    """Two random digits on straight paths that bounce off the walls, the brighter pixel of both.

    Start uniform, direction uniform, speed a tenth of the way there is, reflection at both ends (the procedure of TFDS,
    `video/moving_sequence.py`, with its default speed).
    """
    video = np.zeros((FRAMES, SIZE, SIZE, 1), np.uint8)
    room = SIZE - np.array(digits.shape[1:])
    for digit in digits[rng.integers(len(digits), size=DIGITS)]:
        start, direction = rng.random(2), rng.normal(size=2)
        velocity = SPEED * direction / np.linalg.norm(direction)
        places = (start + np.arange(FRAMES)[:, None] * velocity) % 2
        places = np.round(np.minimum(places, 2 - places) * room).astype(int)
        for frame, (top, left) in zip(video, places, strict=True):
            window = frame[top : top + digit.shape[0], left : left + digit.shape[1], 0]
            np.maximum(window, digit, out=window)
    return video


def _digits(spec: PublishedSet) -> UInt8[np.ndarray, "N H W"]:
    """The digits of MNIST's training part."""
    if spec.via == "tfds":
        items = open_tfds_items("mnist", str(spec.folder), "train")
        return np.stack([item["image"][..., 0] for item in items])
    for path in (spec.folder / f"{DIGITS_FILE}.gz", spec.folder / DIGITS_FILE):
        if path.is_file():
            return read_idx(path)
    raise spec.missing(f"{DIGITS_FILE}.gz is missing")


def read_idx(path: Path) -> UInt8[np.ndarray, "N H W"]:
    """Pictures of an IDX file of bytes with three dimensions, packed by gzip or not. Raises `UserError` for others."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read(MAX_IDX_BYTES + 1)  # a small .gz can hold any amount of zeros
            if len(data) > MAX_IDX_BYTES:
                raise UserError(f"{path} holds more than {MAX_IDX_BYTES} bytes; permitted: the authors' file")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); permitted: the whole file") from error
    shape = [int.from_bytes(data[k : k + 4], "big") for k in (4, 8, 12)]
    whole = data[:4] == b"\0\0\x08\x03" and len(data) == 16 + math.prod(shape)
    if not whole or not 0 < max(shape[1:]) <= SIZE or not min(shape):
        raise UserError(f"{path} is no whole IDX file of pictures; permitted: {DIGITS_FILE}, with or without .gz")
    return np.frombuffer(data, np.uint8, offset=16).reshape(shape)
