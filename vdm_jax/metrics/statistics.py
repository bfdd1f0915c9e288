"""What scores need of the features of any number of videos, in memory that does not grow with them.

Moments of all vectors, and the vectors of some of the videos: all of them while they are few, a uniform draw beyond.
Which videos are drawn follows from their numbers alone, so statistics of parts, measured by different processes or on
different days, add up to those of the whole: `statistics + statistics`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vdm_jax.errors import UserError
from vdm_jax.metrics.frechet import Moments

KEPT = 16_384  # vectors that are kept at most; intervals and kernel distances are taken of them


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the features of numbered videos, `v` vectors a video (one of a clip, or one of each of its frames)."""

    videos: int
    moments: Moments  # of all vectors of all videos, in double precision
    kept: Float[np.ndarray, "M V D"]
    numbers: Int[np.ndarray, " M"]  # of the videos that are kept, ascending
    limit: int  # videos kept at most

    @classmethod
    def of(cls, features: Float[np.ndarray, "N V D"] | Float[np.ndarray, "N D"],
           numbers: Int[np.ndarray, " N"] | Sequence[int], limit: int | None = None) -> Statistics:
        """Those of some videos.

        Args:
          features: of the videos.
          numbers: of the videos among all.
          limit: videos kept at most; by default as many as have `KEPT` vectors together.

        Raises:
          UserError: features that are none or not finite, numbers that are not one a video.
        """
        features, numbers = np.asarray(features), np.asarray(numbers, np.int64)
        features = features[:, None] if features.ndim == 2 else features
        if features.ndim != 3 or len(numbers) != len(features) or len(set(numbers.tolist())) != len(numbers):
            raise UserError(f"features of shape {list(features.shape)} for {len(numbers)} numbers; permitted: "
                            "[N, V, D], and N different numbers")
        limit = max(2, KEPT // features.shape[1]) if limit is None else limit
        moments = Moments.of(features.reshape(-1, features.shape[2]))
        return cls(len(features), moments, *_drawn(features, numbers, limit), limit)

    @property
    def whole(self) -> bool:
        """Whether the vectors of all videos are kept."""
        return len(self.numbers) == self.videos

    def __add__(self, other: Statistics) -> Statistics:
        if self.kept.shape[1:] != other.kept.shape[1:] or self.limit != other.limit:
            raise UserError(f"statistics of {list(self.kept.shape[1:])} features, {self.limit} kept, and of "
                            f"{list(other.kept.shape[1:])}, {other.limit} kept; permitted: equal ones")
        numbers = np.concatenate([self.numbers, other.numbers])
        if len(np.unique(numbers)) != len(numbers):
            raise UserError("statistics of parts that share videos; permitted: each video once", "statistics.videos")
        kept = _drawn(np.concatenate([self.kept, other.kept]), numbers, self.limit)
        return Statistics(self.videos + other.videos, self.moments + other.moments, *kept, self.limit)


def _drawn(features: np.ndarray, numbers: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The videos with the lowest ranks, in the order of their numbers."""
    chosen = np.arange(len(numbers)) if len(numbers) <= limit else np.argpartition(_rank(numbers), limit)[:limit]
    chosen = chosen[np.argsort(numbers[chosen])]
    return features[chosen], numbers[chosen]


def _rank(numbers: Int[np.ndarray, " N"]) -> np.ndarray:
    """A random place for each number, always the same one (the finaliser of SplitMix64)."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
