"""The noise levels of samplers of flow matching, `z = (1 - sigma) x + sigma eps`, as released models choose them.

A grid from 1 down is shifted, `s sigma / (1 + (s - 1) sigma)` (Esser et al. 2024, arXiv 2403.03206, eq. 23), which
lowers the log-SNR by `2 ln s`, and where that is asked for stretched to end above zero. What names of grids stand for
differs by one part in 1,000, and samples with it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.configuration import BetweenZeroAndOne, Count, LogNoise, Positive, config
from vdm_jax.diffusion.families import FLOW
from vdm_jax.errors import UserError

TABLE = 1000  # noise levels with which released models are trained
MOST = 60.0  # log-SNR of no noise, and its negative of noise alone


@config
class DynamicShift:
    """A shift that grows with the tokens of a video: its logarithm is linear in them (LTX-Video: HaCohen et al. 2025,
    arXiv 2501.00103), and goes on beyond both ends."""

    tokens: tuple[Count, Count] = (1024, 4096)
    log_shifts: tuple[LogNoise, LogNoise] = (0.95, 2.05)  # at so many tokens

    def __post_init__(self):
        if not self.tokens[0] < self.tokens[1]:
            raise UserError(f"DynamicShift.tokens={self.tokens} is not valid; permitted: the first below the second")

    def shift(self, tokens: int) -> float:
        """The shift of a video of so many tokens."""
        (first, last), (low, high) = self.tokens, self.log_shifts
        return math.exp(low + (high - low) / (last - first) * (tokens - first))


@config
class FlowSigmas:
    """Where a sampler of flow matching evaluates the network: a grid of sigmas by name, a shift and a stretch.

    `linear` is 1, 1 - 1/N, ..., 1/N. `unipc` (diffusers' UniPC) ends its N + 1 values at 1/1000 and leaves that out;
    its first value is less by 1e-6. `original_unipc` (Wan's own code) goes from 0.999 to 0 and leaves 0 out. `euler`
    (diffusers' FlowMatchEuler) goes from 1 to the shifted 1/1000, which the shift then moves again.
    """

    grid: Literal["linear", "euler", "unipc", "original_unipc"] = "linear"
    shift: Positive = 1.0  # s; larger is more noise
    dynamic: DynamicShift | None = None  # in place of it
    terminal: BetweenZeroAndOne | None = None  # the last sigma, to which the others are stretched; None: as it comes

    def __post_init__(self):
        if self.dynamic is not None and self.shift != 1:
            raise UserError(f"FlowSigmas.shift={self.shift} with dynamic={self.dynamic}; permitted: 1, or dynamic=None")

    def sigmas(self, steps: int, tokens: int | None = None, start: float = 1.0) -> Float[np.ndarray, " steps"]:
        """Sigma of each evaluation, decreasing, float64; `tokens` of the video decide about a dynamic shift, and
        `start` is the time of the first. Raises `UserError` for a dynamic shift without tokens."""
        if self.dynamic is not None and tokens is None:
            raise UserError(f"{self} for a video of which no tokens are known; permitted: dynamic=None, or the steps "
                            "of a released scheduler for a VideoTransformer", "FlowSigmas.dynamic")
        shift = self.shift if self.dynamic is None else self.dynamic.shift(tokens)
        ends = {"linear": (1.0, 0.0), "unipc": (1.0, 1 / TABLE), "original_unipc": (1 - 1 / TABLE, 0.0),
                "euler": (1.0, 1 / TABLE if self.dynamic is not None else shifted(1 / TABLE, shift))}[self.grid]
        whole = self.grid == "euler"
        sigmas = np.linspace(*ends, steps + (not whole))[:steps] * start
        sigmas = shifted(sigmas, shift)
        if self.terminal is not None:
            sigmas = 1 - (1 - sigmas) * (1 - self.terminal) / (1 - sigmas[-1]) if steps > 1 else sigmas
        if self.grid == "unipc" and abs(sigmas[0] - 1) < 1e-6:
            sigmas[0] -= 1e-6  # as there
        return sigmas

    def levels(self, schedule: Any, steps: int, start: float) -> Float[Array, " steps"]:
        """Log-SNR of each evaluation. Raises `UserError` for a schedule of another family."""
        if schedule.family is not FLOW:
            raise UserError(f"FlowSigmas with {type(schedule).__name__}; permitted: a schedule of flow matching, "
                            "FlowSchedule", "FlowSigmas")
        return jnp.asarray(log_snr(self.sigmas(steps, start=start)), jnp.float32)


def shifted(sigma: Float[np.ndarray, " ..."] | float, shift: float) -> Float[np.ndarray, " ..."] | float:
    """`s sigma / (1 + (s - 1) sigma)`. Shifts multiply; that of 1 / s undoes it."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def log_snr(sigma: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """`2 ln((1 - sigma) / sigma)`, within +-60."""
    edge = 1 / (1 + math.exp(MOST / 2))
    sigma = np.asarray(sigma, np.float64)
    # Near 1 the distance to 1 is what counts, and 1 - edge is representable.
    return np.clip(2 * (np.log(np.maximum(1 - sigma, edge)) - np.log(np.maximum(sigma, edge))), -MOST, MOST)
