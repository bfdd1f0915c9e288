"""Which checkpoints stay when a new one is complete."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which steps stay: the newest `keep` (None: all), and the best by `score` if there is one. Orbax asks it."""

    keep: int | None
    score: Callable[[int], float] | None
    mode: str

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(steps if self.keep is None else sorted(steps)[-self.keep:])
        if self.score is not None:
            kept.add(best_step(steps, self.score, self.mode))
        return [step in kept for step in steps]


def best_step(steps: Sequence[int], score: Callable[[int], float], mode: str) -> int | None:
    """The step with the best score (the newest of equals); None where every score is NaN."""
    sign = 1 if mode == "max" else -1
    ranked = [(sign * score(step), step) for step in steps if not math.isnan(score(step))]
    return max(ranked)[1] if ranked else None
