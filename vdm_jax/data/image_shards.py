"""Image and caption pairs in tar files, the layout of WebDataset: `000012.jpg` next to `000012.txt` in each tar."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from vdm_jax.configuration import Share, Size, config
from vdm_jax.data.captions import MAX_CAPTION_BYTES, decode_caption
from vdm_jax.data.folder import (
    SkippedFiles,
    check_fractions,
    files_of_split,
    in_range,
    list_files,
)
from vdm_jax.data.image_folder import SUFFIXES, fitted
from vdm_jax.data.names import is_utf8, printable
from vdm_jax.data.source import RandomAccessSource, ReadAsIs
from vdm_jax.errors import UserError

CAPTION_SUFFIX = ".txt"
MAX_IMAGE_BYTES = 2**28  # of an image file within a tar
MAX_HEADER_BYTES = 2**20  # of a tar's own: long names, and what PAX says of a file

_THREADS = 8  # for reading the tables of contents

Place = tuple[int, int]  # offset and length in a tar file


@config
class ImageShards(ReadAsIs):
    """Images with captions in the tar files below a folder."""

    path: str  # the folder; it is only read
    height: Size = 64  # pixels; images are cut centrally to the aspect ratio, then resized
    width: Size = 64  # pixels
    fractions: tuple[Share, Share, Share] = (0.9, 0.05, 0.05)  # of the images: train, validation, test

    def __post_init__(self):
        check_fractions("ImageShards", self.fractions)

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split."""
        return ImageShardsSource(self, split)


class ImageShardsSource:
    """Random access to the images of one split, each a clip with T = 1. An image without a text has the caption ''.

    The headers of all tar files are read once, at the start; images are read in place. What does not decode is logged
    once and listed in `skipped`, and the next image takes its place. Tar files that are none or cut off, and members
    that say impossible sizes, are skipped likewise.

    Raises:
      UserError: the folder is missing, none of its files is a whole tar, or there are no images.
    """

    def __init__(self, spec: ImageShards, split: str = "train"):
        self.spec, self.split = spec, split
        self.skipped = SkippedFiles()
        self._folder = Path(spec.path).expanduser()
        tars = list_files("ImageShards", spec.path, (".tar",), self.skipped)
        with ThreadPoolExecutor(_THREADS) as pool:
            contents = list(pool.map(lambda name: self._contents(name), tars))
        found = {f"{tar}/{name}": (tar, *places) for tar, pairs in zip(tars, contents, strict=True)
                 for name, places in pairs.items()}
        if not found:
            because = f" ({len(self.skipped)} skipped; {next(iter(self.skipped.items()))})" if self.skipped else ""
            raise UserError(f"ImageShards.path={spec.path!r}: no images in {len(tars)} tar files{because}; permitted: "
                            f"{', '.join(SUFFIXES)}, each with a {CAPTION_SUFFIX} of the same name")
        self._names = files_of_split("ImageShards", sorted(found), split, spec.fractions)
        self._places = [found[name] for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.skipped.first_readable(in_range(index, len(self)), self._names, self._read)

    def exact(self, index: int) -> dict[str, Any]:
        """Image `index`, and no other in its place: raises `UserError` where it does not decode."""
        number = in_range(index, len(self))
        return self.skipped.noting(self._names[number], lambda: self._read(number))

    def captions(self) -> Iterator[str]:
        """The caption of every image, without decoding it."""
        for tar, _, text in self._places:
            yield self._caption(tar, text)

    def _read(self, number: int) -> dict[str, Any]:
        tar, picture, text = self._places[number]
        pixels = fitted(io.BytesIO(self._bytes(tar, picture)), self.spec.height, self.spec.width)
        return {"video": pixels[None], "caption": self._caption(tar, text)}

    def _caption(self, tar: str, text: Place | None) -> str:
        try:
            return "" if text is None else decode_caption(self._bytes(tar, text))
        except ValueError as error:
            self.skipped.add(f"{tar}: caption at byte {text[0]}", f"{error}")
            return ""

    def _bytes(self, tar: str, place: Place) -> bytes:
        try:
            with open(self._folder / tar, "rb") as file:
                file.seek(place[0])
                return file.read(place[1])
        except OSError as error:
            raise UserError(f"{self._folder / tar} cannot be read: {error.strerror}") from error

    def _contents(self, tar: str) -> dict[str, tuple[Place, Place | None]]:
        """Where each image of a tar file and its caption lie, by the image's name; nothing of a file that is no tar."""
        try:
            places = _members(self._folder / tar, lambda name, why: self.skipped.add(f"{tar}/{printable(name)}", why))
        except UserError as error:
            self.skipped.add(tar, str(error))
            return {}
        return {name: (place, places.get(str(PurePosixPath(name).with_suffix(CAPTION_SUFFIX))))
                for name, place in places.items() if PurePosixPath(name).suffix.lower() in SUFFIXES}


def _members(path: Path, skip: Callable[[str, str], None]) -> dict[str, Place]:
    """Where the files of a tar lie, by their names without `./`, `//` and a leading `/`. Sparse files, which do not lie
    in one piece, and files too large or beyond the end are named by `skip(name, reason)`.

    Raises `UserError` for what is no tar file, is cut off or has headers that lie.
    """
    places: dict[str, Place] = {}
    try:
        size = path.stat().st_size
        with open(path, "rb") as file, tarfile.open(fileobj=_Bounded(file, size), mode="r:") as tar:
            end = 0
            while (member := tar.next()) is not None:
                # The library goes where the sizes say, and that may be backwards.
                if member.size < 0 or member.offset_data < end or member.offset_data + (
                        0 if member.issparse() else member.size) > size:
                    raise UserError(f"{path} is damaged or cut off at {printable(member.name)!r}, of {member.size} "
                                    "bytes; permitted: whole tar files")
                end = member.offset_data
                tar.members.clear()  # it keeps all of them, and we keep what we need
                name = posixpath.normpath(member.name).lstrip("/")
                limit = MAX_CAPTION_BYTES if name.endswith(CAPTION_SUFFIX) else MAX_IMAGE_BYTES
                wanted = PurePosixPath(name).suffix.lower() in (*SUFFIXES, CAPTION_SUFFIX)
                if not member.isfile() or not wanted:
                    continue
                if member.issparse():
                    skip(name, "a sparse file; permitted: tar files written without --sparse")
                elif not is_utf8(name):
                    skip(name, "its name is not UTF-8; rename it")
                elif member.size > limit:
                    skip(name, f"{member.size} bytes; permitted: at most {limit}")
                else:
                    places[name] = (member.offset_data, member.size)
    except UserError:
        raise
    except Exception as error:  # a damaged header can fail in any way
        raise UserError(f"{path} is unreadable ({str(error) or type(error).__name__}); permitted: whole tar files, not "
                        "compressed") from error
    return places


class _Bounded:
    """A file whose reads are no longer than it is: names and headers of a tar may say any length."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= min(self._size, MAX_HEADER_BYTES):
            raise UserError(f"a header of {count} bytes; permitted: at most {min(self._size, MAX_HEADER_BYTES)}")
        return self._file.read(count)
