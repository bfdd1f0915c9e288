"""What sources share that hold whole videos as arrays: one clip of each video."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vdm_jax.data.folder import in_range
from vdm_jax.errors import UserError


class WholeVideos(abc.ABC):
    """One clip per video: its beginning, or by `clip` and `frame` from anywhere in it. Without captions.

    `spec` has `frames`, `height`, `width` and `frame_stride`. A subclass gives `__len__` and `video(index)`.
    """

    def __init__(self, spec: Any, split: str):
        self.spec, self.split = spec, split

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def video(self, index: int) -> UInt8[np.ndarray, "T H W C"]:
        """The whole video `index`, grey (C = 1) or RGB."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._clip(index, self.spec.frames, lambda room: 0)

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
        return self._cut(self.video(in_range(index, len(self))), index, frames, begin)

    def _cut(self, video: np.ndarray, index: int, frames: int, begin: Callable[[int], int]) -> dict[str, Any]:
        """`frames` of a video from the one that `begin(last permitted)` names."""
        from vdm_jax.video.fitting import fit_frame

        span = (frames - 1) * self.spec.frame_stride + 1
        if len(video) < span:
            raise UserError(f"{type(self.spec).__name__}: video {index} has {len(video)} frames and a clip of "
                            f"frames={frames}, frame_stride={self.spec.frame_stride} needs {span}; permitted: fewer")
        start = begin(len(video) - span)
        taken = video[start : start + span : self.spec.frame_stride]
        return {"video": np.stack([fit_frame(frame, self.spec.height, self.spec.width) for frame in taken]),
                "caption": ""}
