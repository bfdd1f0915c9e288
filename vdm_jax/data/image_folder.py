"""Any folder of images as clips of one frame: for image models, and for joint training on images and videos."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vdm_jax.configuration import Share, Size, config
from vdm_jax.data.captions import read_caption_files, read_captions
from vdm_jax.data.folder import (
    SkippedFiles,
    check_fractions,
    files_of_split,
    in_range,
    list_files,
)
from vdm_jax.data.source import RandomAccessSource, ReadAsIs
from vdm_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")

MAX_PIXELS = 178_956_970  # of a picture, 13,377 x 13,377: beyond it Pillow takes a file for an attack

_THREADS = 8  # for looking at the headers


@config
class ImageFolder(ReadAsIs):
    """Images anywhere below a folder."""

    path: str  # the folder; it is only read
    captions: str | None = None  # CSV file with the columns file (relative to the folder) and caption
    caption_suffix: str | None = None  # instead: of text files next to the images, a.txt next to a.jpg for '.txt'
    height: Size = 64  # pixels; images are cut centrally to the aspect ratio, then resized
    width: Size = 64  # pixels
    fractions: tuple[Share, Share, Share] = (0.9, 0.05, 0.05)  # of the files: train, validation, test

    def __post_init__(self):
        check_fractions("ImageFolder", self.fractions)
        if self.captions is not None and self.caption_suffix is not None:
            raise UserError(f"ImageFolder.caption_suffix={self.caption_suffix!r} with captions={self.captions!r}; "
                            "permitted: one of them")
        if self.caption_suffix is not None and not re.fullmatch(r"\.[^./\\\0]+", self.caption_suffix):
            raise UserError(f"ImageFolder.caption_suffix={self.caption_suffix!r}; permitted: a dot and the end of a "
                            "name, such as '.txt'")

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split."""
        return ImageFolderSource(self, split)


class ImageFolderSource:
    """Random access to the images of one split, each a clip with T = 1.

    Files that are no images are left out, logged once and listed with the reason in `skipped`.

    Raises:
      UserError: the folder is missing or holds no readable image, or the caption table is wrong.
    """

    def __init__(self, spec: ImageFolder, split: str = "train"):
        self.spec, self.split = spec, split
        self.skipped = SkippedFiles()
        self._folder = Path(spec.path).expanduser()
        every = list_files("ImageFolder", spec.path, SUFFIXES, self.skipped)
        if spec.caption_suffix is None:
            captions = read_captions("ImageFolder", spec.captions, every)
        else:
            captions = read_caption_files(spec.path, every, spec.caption_suffix)
        names = files_of_split("ImageFolder", every, split, spec.fractions)
        with ThreadPoolExecutor(_THREADS) as pool:
            problems = list(pool.map(lambda name: _problem(self._folder / name), names))
        for name, problem in zip(names, problems, strict=True):
            if problem:
                self.skipped.add(name, problem)
        self._files = [name for name in names if name not in self.skipped]
        if not self._files:
            raise UserError(f"ImageFolder.path={spec.path!r}: none of {len(names)} files of split {split!r} is "
                            f"readable; the first, {names[0]}: {self.skipped[names[0]]}")
        self._captions = [captions[name] for name in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.skipped.first_readable(in_range(index, len(self)), self._files, self._read)

    def exact(self, index: int) -> dict[str, Any]:
        """Image `index`, and no other in its place: raises `UserError` where it does not decode."""
        number = in_range(index, len(self))
        return self.skipped.noting(self._files[number], lambda: self._read(number))

    def captions(self) -> Iterator[str]:
        """The caption of every image, without reading it."""
        yield from self._captions

    def _read(self, number: int) -> dict[str, Any]:
        picture = fitted(self._folder / self._files[number], self.spec.height, self.spec.width)
        return {"video": picture[None], "caption": self._captions[number]}


def fitted(file: Path | BinaryIO, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """An image file cut centrally and resized. Raises `UserError` for one that cannot be read, or has more than
    `MAX_PIXELS`."""
    from vdm_jax.video.fitting import fit_image

    with opened(file) as image:
        return fit_image(image, height, width)


@contextlib.contextmanager
def opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """A picture by Pillow, whose pixels are read within the `with`. Raises `UserError` for one that cannot be read, or
    has more than `MAX_PIXELS`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we count ourselves
            image = Image.open(file)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"a picture of {image.width}x{image.height}; permitted: at most {MAX_PIXELS} pixels")
            yield image
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any way, and there are many formats
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is the name of the file
        reason = (not unknown and (getattr(error, "strerror", None) or str(error))) or type(error).__name__
        raise UserError(f"not a readable image ({reason})") from error


def _problem(path: Path) -> str | None:
    """Why a file is no image by its header, or None."""
    try:
        with opened(path):
            return None
    except UserError as error:
        return str(error)
