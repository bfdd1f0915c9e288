"""What annotators share: the frames of a video, or a part of it, as they come, and files of a folder that lie next to
videos."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vdm_jax.data.decoding import stem
from vdm_jax.errors import UserError
from vdm_jax.video.reading import VideoReader

AT_A_TIME = 4  # frames of a video that are decoded, or annotated, together


class Part(VideoReader):
    """The first frames of a video, in a size of their own.

    Args:
      path: of the video.
      frames: how many at most; None: all.
      size: height and width that frames are cut and resized to; None: the video's own.
    """

    def __init__(self, path: Path, frames: int | None = None, size: tuple[int, int] | None = None):
        self._most, self._cut_to = frames, size
        super().__init__(path)

    def __len__(self) -> int:
        """Number of frames."""
        return super().__len__() if self._most is None else min(self._most, super().__len__())

    def frames(
        self, indices: Sequence[int] | np.ndarray, height: int | None = None, width: int | None = None
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """As of `VideoReader`."""
        if (height, width) == (None, None) and self._cut_to is not None:
            height, width = self._cut_to
        return super().frames(indices, height, width)


def frames_of(video: VideoReader) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """All frames of a video, in its own size."""
    for start in range(0, len(video), AT_A_TIME):
        yield from video.frames(range(start, min(start + AT_A_TIME, len(video))))


def place_of(folder: str, name: str, *, suffixes: tuple[str, ...]) -> Path:
    """What lies in a folder for a video: a file of its name but for the ending, or a folder of its name. Raises
    `UserError` where there is neither."""
    base = Path(folder).expanduser() / stem(name)
    for place in (base, *(base.with_name(base.name + suffix) for suffix in suffixes)):
        if place.is_dir() if place == base else place.is_file():
            return place
    raise UserError(f"nothing for {name} in {folder}; permitted: the folder {stem(name)}, or the file {stem(name)} "
                    f"with {', '.join(suffixes)}", "annotation.place")


def numbered_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with an ending, frame 10 after frame 9."""
    files = [file for file in folder.iterdir() if file.suffix.lower() == suffix and not file.name.startswith(".")]
    return sorted(files, key=lambda file: [(part.isdigit(), int(part) if part.isdigit() else part)
                                           for part in re.split(r"(\d+)", file.name) if part])


def check_count(place: Path, what: str, found: int, frames: int) -> None:
    """Raise `UserError` unless there is one of something for each frame."""
    if found != frames:
        raise UserError(f"{place} has {found} {what} for {frames} frames; permitted: one for each", "annotation.frames")
