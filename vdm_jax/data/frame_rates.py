"""Frame rates at which clips are read in training: a distribution that moves while training goes on."""

import math
from typing import Literal

import numpy as np

from vdm_jax.configuration import Count, Positive, config
from vdm_jax.errors import UserError


@config
class FrameRates:
    """Rates drawn for each clip by a beta distribution that moves from high ones, where little moves between frames, to
    low ones (Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section 3.4).

    The range and the direction are published; parameters of the distribution and how they move are not.
    """

    lowest: Positive = 1.0  # frames per second
    highest: Positive = 30.0  # frames per second
    first: tuple[Positive, Positive] = (4.0, 1.0)  # (a, b) of the beta distribution over the range, at the first step
    last: tuple[Positive, Positive] = (1.0, 4.0)  # the same after `steps` steps
    steps: Count = 100_000  # training steps over which it moves; then it stays
    course: Literal["linear", "cosine"] = "linear"  # of a and b

    def __post_init__(self):
        if self.lowest > self.highest:
            raise UserError(f"FrameRates(lowest={self.lowest}, highest={self.highest}); permitted: "
                            "lowest <= highest")

    def shape(self, step: int) -> tuple[float, float]:
        """(a, b) of the beta distribution at a step, from 0 on."""
        share = min(step / self.steps, 1.0)
        share = (1 - math.cos(math.pi * share)) / 2 if self.course == "cosine" else share
        return tuple((1 - share) * a + share * b for a, b in zip(self.first, self.last, strict=True))

    def draw(self, step: int, rng: np.random.Generator) -> float:
        """The rate of one clip at a step, frames per second."""
        return self.lowest + (self.highest - self.lowest) * float(rng.beta(*self.shape(step)))
