"""Stochastic Moving MNIST: two digits that bounce off the walls in random directions, drawn as they are asked for.

Denton and Fergus 2018, "SVG", arXiv 1802.07687, and its published code (edenton/svg, data/moving_mnist.py). MCVD
(Voleti et al. 2022, arXiv 2205.09853) has the same process, and test clips of the first 256 test digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vdm_jax.configuration import SPLITS, Count, Range, Seed, Size, Split, check_value, config
from vdm_jax.data.folder import in_range
from vdm_jax.data.mnist import mnist_digits
from vdm_jax.data.source import ReadAsIs

SIZE, DIGIT_SIZE = 64, 32  # pixels of a frame and of a digit, height and width
ROOM = SIZE - DIGIT_SIZE  # a digit's corner is at 0 to ROOM - 1; the place ROOM, which would fit, is never taken
FASTEST = 4  # pixels a frame, along each axis
TEST_DIGITS = 256  # of MNIST's test part, from its first

Digits = UInt8[np.ndarray, "N H W"]
State = tuple[int, int, int, int]  # row and column of a digit's corner, and their change a frame


@config
class StochasticMovingMNIST(ReadAsIs):
    """Clips of 64x64 with digits of 32x32 pixels, grey values in all three channels, without captions.

    Training clips have the digits of MNIST's training part, and are drawn anew each time with
    `Training.random_starts`, as the authors do. Test clips have the first `test_digits` of its test part. The papers
    have no validation clips: here they have the test digits after the first 256, which no test clip of MCVD has.
    The papers seed no fixed test set: here a clip is a function of seed, split and number.
    """

    path: str = ""  # MNIST's file; "": that of the installed package (`mnist.mnist_digits`)
    frames: Size = 15  # of a clip
    digits: Annotated[int, Range(least=1, cap=100)] = 2  # in a clip
    test_digits: Annotated[int, Range(least=1, most=10_000)] = TEST_DIGITS  # 256 for MCVD's, 10,000 for SVG's clips
    seed: Seed = 0
    train_clips: Count = 60_000  # before they repeat; with Training.random_starts none does
    validation_clips: Count = 256
    test_clips: Count = 256

    def open(self, split: str, data_dir: Path) -> SMMNISTSource:
        """The clips of one split. Raises `UserError` where MNIST is not there."""
        check_value(split, Split, "split")
        pictures = mnist_digits("train" if split == "train" else "test", self.path)
        return SMMNISTSource(self, split, self.of_split(split, pictures))

    def of_split(self, split: str, pictures: Digits) -> UInt8[np.ndarray, "M H W"]:
        """The digits of a split among those of MNIST's part."""
        return {"train": pictures, "validation": pictures[TEST_DIGITS:], "test": pictures[: self.test_digits]}[split]

    def clip_shape(self) -> tuple[int, int, int]:
        """`(T, H, W)`."""
        return self.frames, SIZE, SIZE


class SMMNISTSource:
    """The clips of one split, from its digits."""

    def __init__(self, spec: StochasticMovingMNIST, split: str, digits: Digits) -> None:
        self.spec, self.split, self._digits = spec, split, digits

    def __len__(self) -> int:
        return getattr(self.spec, f"{self.split}_clips")

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._clip(self._generator(index))

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip that no other draw gives; the number does not matter."""
        in_range(index, len(self))
        return self._clip(rng)

    def continued(self, index: int, given: int, rng: np.random.Generator) -> UInt8[np.ndarray, "T 64 64 3"]:
        """Another video that begins with the first `given` frames of clip `index` (2 or more): the digits, their places
        and the speeds that these frames show are known, and the rest is drawn from the process. No model can predict
        better. A speed that a wall draws in the last given frame shows only in the next one, and is drawn again."""
        check_value(given, Annotated[int, Range(least=2, most=self.spec.frames)], "given")
        pictures, tracks = self._plan(self._generator(index))
        endings = []
        for track in tracks:
            y, x, dy, dx = track[given - 2].tolist()
            ending = walk(rng, (y + dy, x + dx, dy, dx), self.spec.frames - given + 1)
            endings.append(np.concatenate([track[: given - 1], ending]))
        return drawn(pictures, np.stack(endings))

    def captions(self) -> Iterator[str]:
        """There are none."""
        yield from ()

    def _generator(self, index: int) -> np.random.Generator:
        number = in_range(index, len(self))
        return np.random.default_rng([self.spec.seed, SPLITS.index(self.split), number])

    def _clip(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"video": drawn(*self._plan(rng)), "caption": ""}

    def _plan(self, rng: np.random.Generator) -> tuple[Digits, Int[np.ndarray, "K T 4"]]:
        """The digits of a clip and their tracks."""
        chosen, tracks = [], []
        for _ in range(self.spec.digits):
            chosen.append(enlarged(self._digits[rng.integers(len(self._digits))]))
            y, x = rng.integers(ROOM, size=2).tolist()
            dy, dx = rng.integers(-FASTEST, FASTEST + 1, size=2).tolist()
            tracks.append(walk(rng, (y, x, dy, dx), self.spec.frames))
        return np.stack(chosen), np.stack(tracks)


def walk(rng: np.random.Generator, state: State, frames: int) -> Int[np.ndarray, "T 4"]:
    """Place and speed of a digit in each frame, the first of which is at `state`.

    A wall that was passed stops the digit there and draws both speeds anew, the one off the wall at least 1. Rows are
    looked at before columns, so that in a corner the speed along rows is drawn twice.
    """
    y, x, dy, dx = state
    track = np.empty((frames, 4), np.int64)
    for frame in track:
        y, dy, dx = _bounced(rng, y, dy, dx)
        x, dx, dy = _bounced(rng, x, dx, dy)
        frame[:] = y, x, dy, dx
        y, x = y + dy, x + dx
    return track


def _bounced(rng: np.random.Generator, place: int, speed: int, across: int) -> tuple[int, int, int]:
    """Place and speed along an axis, and the speed along the other one, after a look at the walls."""
    if 0 <= place < ROOM:
        return place, speed, across
    away = int(rng.integers(1, FASTEST + 1))
    across = int(rng.integers(-FASTEST, FASTEST + 1))
    return (0, away, across) if place < 0 else (ROOM - 1, -away, across)


def drawn(pictures: UInt8[np.ndarray, "K H W"], tracks: Int[np.ndarray, "K T 4"]) -> UInt8[np.ndarray, "T 64 64 3"]:
    """Digits at their places; where they overlap, the sum of their values, at most white."""
    video = np.zeros((tracks.shape[1], SIZE, SIZE), np.uint16)
    for picture, track in zip(pictures, tracks, strict=True):
        for frame, (y, x) in zip(video, track[:, :2], strict=True):
            frame[y : y + DIGIT_SIZE, x : x + DIGIT_SIZE] += picture
    return np.repeat(np.minimum(video, 255).astype(np.uint8)[..., None], 3, axis=-1)


def enlarged(digit: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "32 32"]:
    """A digit at the size in a frame: bilinear, by Pillow, as the authors' torchvision does it."""
    return np.asarray(Image.fromarray(digit).resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BILINEAR))
