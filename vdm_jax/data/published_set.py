"""What the sets of `published.py` share: official parts as splits, and errors that say what to fetch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from vdm_jax.configuration import SPLITS, Size, Split, check_value, config
from vdm_jax.data.source import ReadAsIs
from vdm_jax.data.tfds_video import TFDSVideo
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Download:
    """What a user fetches, and how the folder looks afterwards."""

    what: str
    page: str
    layout: tuple[str, ...]  # paths below the folder


@config
class PublishedSet(ReadAsIs):
    """A set with official parts. `splits` names those (several joined by +) that serve for training, validation and
    test."""

    DOWNLOAD: ClassVar[Download]
    PARTS: ClassVar[tuple[str, ...]]  # the official ones

    path: str  # the folder; with via="tfds" the TFDS data folder
    frames: Size = 16  # frames of a clip
    height: Size = 64  # pixels
    width: Size = 64  # pixels
    frame_stride: Size = 1  # every how many-th frame of a video is taken

    def __post_init__(self):
        kind = type(self).__name__
        if any(part not in self.PARTS for split in self.splits for part in split.split("+")):
            raise UserError(f"{kind}.splits={self.splits!r}; permitted: for train, validation and test one or more of "
                            f"{', '.join(self.PARTS)}, joined by +")

    @property
    def folder(self) -> Path:
        """The folder with the user's home filled in."""
        return Path(self.path).expanduser()

    def parts(self, split: str) -> tuple[str, ...]:
        """The official parts of a split. Raises `UserError` for an unknown split."""
        check_value(split, Split, "split")
        return tuple(self.splits[SPLITS.index(split)].split("+"))

    def missing(self, what: str) -> UserError:
        """The error for data that is not there: what to fetch, from where, and where to put it."""
        there = self.DOWNLOAD
        layout = ", ".join(f"{self.path}/{name}" for name in there.layout)
        return UserError(
            f"{type(self).__name__}.path={self.path!r}: {what}; permitted: a folder with {layout}. Fetch {there.what} "
            f"from {there.page}, put them there unpacked, and give the same command again; a set that lies elsewhere: "
            "--data.path FOLDER")

    def tfds(self, name: str, **fields: Any) -> TFDSVideo:
        """The same set as TFDS has it."""
        return TFDSVideo(name=name, data_dir=str(self.folder), frames=self.frames, height=self.height,
                         width=self.width, frame_stride=self.frame_stride, splits=self.splits, **fields)

    def videos(self) -> VideoFolder:
        """How its video files are cut into clips."""
        return VideoFolder(path=self.path, frames=self.frames, height=self.height, width=self.width,
                           frame_stride=self.frame_stride, clips="one")
