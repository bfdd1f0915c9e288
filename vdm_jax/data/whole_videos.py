"""What sources share that hold whole videos as arrays: one clip of each video."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vdm_jax.data.folder import Numbered, SkippedFiles, in_range
from vdm_jax.errors import UserError


class WholeVideos(abc.ABC):
    """One clip per video: its beginning, or by `clip` and `frame` from anywhere in it. Without captions.

    `spec` has `frames`, `height`, `width` and `frame_stride`. A subclass gives `__len__` and `video(index)`.
    Videos that are damaged or too short are logged once and listed with the reason in `skipped`; the next one takes
    their place.
    """

    def __init__(self, spec: Any, split: str):
        self.spec, self.split = spec, split
        self.skipped = SkippedFiles()

    @property
    def names(self) -> Sequence[str]:
        """What the videos are called where they are skipped."""
        return Numbered("video", len(self))

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def video(self, index: int) -> UInt8[np.ndarray, "T H W C"]:
        """The whole video `index`, grey (C = 1) or RGB. Raises `UserError` for one that is damaged."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._clip(index, self.spec.frames, lambda room: 0)

    def exact(self, index: int) -> dict[str, Any]:
        """The beginning of video `index`, and of no other in its place: raises `UserError` where it is damaged."""
        number = in_range(index, len(self))
        return self.skipped.noting(self.names[number], lambda: self._cut(
            self.video(number), self.spec.frames, lambda room: 0))

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip that begins anywhere in video `index`."""
        return self._clip(index, self.spec.frames, lambda room: int(rng.integers(room + 1)))

    def frame(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One random frame of video `index` as a clip with T = 1."""
        return self._clip(index, 1, lambda room: int(rng.integers(room + 1)))

    def captions(self) -> Iterator[str]:
        """There are none."""
        yield from ()

    def _clip(self, index: int, frames: int, begin: Callable[[int], int]) -> dict[str, Any]:
        return self.skipped.first_readable(in_range(index, len(self)), self.names, lambda number: self._cut(
            self.video(number), frames, begin))

    def _cut(self, video: np.ndarray, frames: int, begin: Callable[[int], int]) -> dict[str, Any]:
        """`frames` of a video from the one that `begin(last permitted)` names."""
        from vdm_jax.video.fitting import fit_frame

        span = require_span(self.spec, len(video), frames)
        start = begin(len(video) - span)
        taken = video[start : start + span : self.spec.frame_stride]
        return {"video": np.stack([fit_frame(frame, self.spec.height, self.spec.width) for frame in taken]),
                "caption": ""}


def require_span(spec: Any, there: int, frames: int) -> int:
    """Frames from the first to the last of a clip. Raises `UserError` where a video has fewer."""
    span = (frames - 1) * spec.frame_stride + 1
    if there < span:
        raise UserError(f"{there} frames, and a clip of {type(spec).__name__}.frames={frames}, "
                        f"frame_stride={spec.frame_stride} needs {span}; permitted: fewer")
    return span
