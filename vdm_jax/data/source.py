"""What a data set is: its config (`ClipData`) and its clips by number (`RandomAccessSource`).

The pipeline, preparation, planning and evaluation know no more of a data set than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


@runtime_checkable
class RandomAccessSource(Protocol):
    """Clips by number. Every source is deterministic in the number, safe to read from several threads, and picklable.

    A clip is a dict with `video` uint8 [T, H, W, 3] (an image set has T = 1), `caption` str ('' when there is none)
    and, where the set has them, `fps` float and `label` int; further arrays, such as text `embeddings` [L, C] with
    `text_mask` [L], are batched as they are. All clips of a source have the same keys and shapes.

    Optional methods are used where a source has them: `clip(i, rng)`, clip `i` with its start moved at random;
    `frame(i, rng)`, one random frame of it as a clip with T = 1, without reading the others; and `clip_at(i, rng, fps,
    frames)`, so many frames at the rate `fps`, or the nearest one there is, which the clip's `fps` says.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@runtime_checkable
class CaptionScorer(Protocol):
    """Says of clips whether they show what their captions ask for."""

    name: str  # under which its scores are recorded, such as "digits"
    attributes: tuple[str, ...]  # what it scores

    def score(self, videos: UInt8[np.ndarray, "B T H W 3"], captions: Sequence[str]) -> Any:
        """A table with `means()`, share right by attribute, and `summary()`, the same by groups of captions too."""

    def examples(self, split: str, count: int) -> list[dict[str, Any]]:
        """The first clips of a split, whether the data set is prepared or not."""


@runtime_checkable
class ClipData(Protocol):
    """The config of a data set. `ReadAsIs` has the answers of files that need no preparation."""

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split. Raises `UserError` for data that is missing, unreadable or empty.

        Args:
          split: one of `folder.SPLITS`.
          data_dir: where prepared data sets live.
        """

    def clip_shape(self) -> tuple[int, int, int] | None:
        """`(T, H, W)` of every clip; None where only files say it that are not here."""

    @property
    def padded(self) -> bool:
        """Whether clips are padded to one length and have `frame_valid` bool [T]."""

    def prepare(self, data_dir: Path) -> Path | None:
        """Writes the data set below `data_dir`, unless it is there; returns its folder. None: it is read as it is."""

    def stored_bytes(self) -> int:
        """Bytes on disk of what `prepare` writes, at the least."""

    def vocabulary(self) -> tuple[str, ...] | None:
        """Every word that a caption can contain, sorted; None where only the captions themselves say it."""

    def scorer(self) -> CaptionScorer | None:
        """What tells whether a clip shows what its caption asks for; None where nothing does.

        Raises `UserError` where a package that it needs is not installed.
        """


class ReadAsIs:
    """The part of `ClipData` that is the same for all data sets that are read as they are."""

    def clip_shape(self) -> tuple[int, int, int] | None:
        """`(T, H, W)` as the fields say; an image has T = 1."""
        return getattr(self, "frames", 1), self.height, self.width

    @property
    def padded(self) -> bool:
        """Clips have all their frames."""
        return False

    def prepare(self, data_dir: Path) -> Path | None:
        """None: there is nothing to prepare."""
        return None

    def stored_bytes(self) -> int:
        """0: nothing is written."""
        return 0

    def vocabulary(self) -> tuple[str, ...] | None:
        """None: any word may occur in a caption."""
        return None

    def scorer(self) -> CaptionScorer | None:
        """None: nothing tells what a clip shows."""
        return None


def random_frame(source: RandomAccessSource, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """One frame of clip `index`, drawn by `rng`, as a clip with `video` uint8 [1, H, W, 3]."""
    if hasattr(source, "frame"):
        return source.frame(index, rng)
    clip = source[index]
    number = int(rng.integers(len(clip["video"])))
    return clip | {"video": clip["video"][number : number + 1]}
