"""What a source of training clips is. The pipeline, preparation and evaluation know no more of a data set than this."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


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


def random_frame(source: RandomAccessSource, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """One frame of clip `index`, drawn by `rng`, as a clip with `video` uint8 [1, H, W, 3]."""
    if hasattr(source, "frame"):
        return source.frame(index, rng)
    clip = source[index]
    number = int(rng.integers(len(clip["video"])))
    return clip | {"video": clip["video"][number : number + 1]}
