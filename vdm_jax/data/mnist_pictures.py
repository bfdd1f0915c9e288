"""MNIST's pictures as a data set of images: to measure densities where others have published theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vdm_jax.configuration import Split, check_value, config
from vdm_jax.data.folder import in_range
from vdm_jax.data.mnist import SIZE, mnist_digits
from vdm_jax.data.source import ReadAsIs

VALIDATION = 10_000  # of the training part, its last


@config
class MNISTPictures(ReadAsIs):
    """Handwritten digits of 28x28 pixels (LeCun et al. 1998), grey values in all three channels, without captions.

    Test clips are MNIST's test part. Its training part is split as in the file it comes from: 50,000 and 10,000.
    """

    path: str = ""  # MNIST's file; "": that of the installed package (`mnist.mnist_digits`)

    def open(self, split: str, data_dir: Path) -> MNISTPicturesSource:
        """The pictures of one split. Raises `UserError` where MNIST is not there."""
        check_value(split, Split, "split")
        pictures = mnist_digits("test" if split == "test" else "train", self.path)
        parts = {"train": pictures[:-VALIDATION], "validation": pictures[-VALIDATION:], "test": pictures}
        return MNISTPicturesSource(parts[split])

    def clip_shape(self) -> tuple[int, int, int]:
        """`(T, H, W)` of a picture, which has T = 1."""
        return 1, SIZE, SIZE


class MNISTPicturesSource:
    """Pictures by number."""

    def __init__(self, pictures: UInt8[np.ndarray, "N H W"]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self._pictures[in_range(index, len(self))]
        return {"video": np.repeat(picture[None, :, :, None], 3, axis=3), "caption": ""}

    def captions(self) -> Iterator[str]:
        """There are none."""
        yield from ()
