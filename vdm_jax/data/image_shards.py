"""Image and caption pairs in tar files, the layout of WebDataset: `000012.jpg` beside `000012.txt` in each tar."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vdm_jax.configuration import Size, config
from vdm_jax.data.folder import SkippedFiles, check_fractions, files_of_split, in_range, list_files
from vdm_jax.data.image_folder import SUFFIXES, fitted
from vdm_jax.data.source import require_at_least
from vdm_jax.errors import UserError

CAPTION_SUFFIX = ".txt"

_THREADS = 8  # for reading the tables of contents

Place = tuple[int, int]  # offset and length in a tar file


@config
class ImageShards:
    """Images with captions in the tar files below a folder."""

    path: str  # the folder; it is only read
    height: Size = 64  # pixels; images are cut centrally to the aspect ratio, then resized
    width: Size = 64  # pixels
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)  # of the images: train, validation, test

    def __post_init__(self):
        require_at_least(self, height=1, width=1)
        check_fractions("ImageShards", self.fractions)


class ImageShardsSource:
    """Random access to the images of one split, each a clip with T = 1. An image without a text has the caption ''.

    The headers of all tar files are read once, at the start; images are read in place. What does not decode is logged
    once and listed in `skipped`, and the next image takes its place.

    Raises:
      UserError: the folder is missing, a file in it is no tar or cut off, or there are no images.
    """

    def __init__(self, spec: ImageShards, split: str = "train"):
        self.spec, self.split = spec, split
        self.skipped = SkippedFiles()
        self._folder = Path(spec.path).expanduser()
        tars = list_files("ImageShards", spec.path, (".tar",))
        with ThreadPoolExecutor(_THREADS) as pool:
            contents = list(pool.map(lambda name: _contents(self._folder / name), tars))
        found = {f"{tar}/{name}": (tar, *places) for tar, pairs in zip(tars, contents, strict=True)
                 for name, places in pairs.items()}
        if not found:
            raise UserError(f"ImageShards.path={spec.path!r}: no images in {len(tars)} tar files; permitted: "
                            f"{', '.join(SUFFIXES)}, each with a {CAPTION_SUFFIX} of the same name")
        self._names = files_of_split("ImageShards", sorted(found), split, spec.fractions)
        self._places = [found[name] for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.skipped.first_readable(in_range(index, len(self)), self._names, self._read)

    def captions(self) -> Iterator[str]:
        """The caption of every image, without decoding it."""
        for tar, _, text in self._places:
            yield self._caption(tar, text)

    def _read(self, number: int) -> dict[str, Any]:
        tar, picture, text = self._places[number]
        pixels = fitted(io.BytesIO(self._bytes(tar, picture)), self.spec.height, self.spec.width)
        return {"video": pixels[None], "caption": self._caption(tar, text)}

    def _caption(self, tar: str, text: Place | None) -> str:
        return "" if text is None else self._bytes(tar, text).decode(errors="replace").strip()

    def _bytes(self, tar: str, place: Place) -> bytes:
        with open(self._folder / tar, "rb") as file:
            file.seek(place[0])
            return file.read(place[1])


def _contents(path: Path) -> dict[str, tuple[Place, Place | None]]:
    """Where each image of a tar file and its caption lie, by the image's name."""
    try:
        with tarfile.open(path, "r:") as tar:
            places = {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} is unreadable ({error}); permitted: whole tar files, not compressed") from error
    end = max((offset + size for offset, size in places.values()), default=0)
    if end > path.stat().st_size:
        raise UserError(f"{path} is cut off; permitted: whole tar files")
    return {name: (place, places.get(str(Path(name).with_suffix(CAPTION_SUFFIX)))) for name, place in places.items()
            if Path(name).suffix.lower() in SUFFIXES}
