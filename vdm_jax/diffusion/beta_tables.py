"""Discrete schedules given by a table of betas, read in continuous time.

Integer timestep n in 0 .. steps-1 has `alpha_n^2 = prod_{i<=n} (1 - beta_i)` (Ho et al. 2020, arXiv
2006.11239). Time `t = n / (steps - 1)`, and between two timesteps the log-SNR is interpolated linearly, which
keeps it monotone. Networks that were trained on integer timesteps are given `timestep(logsnr)`.
"""

import functools
from typing import Annotated, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from vdm_jax.configuration import BetweenZeroAndOne, Positive, Range, ShareBelowOne, config
from vdm_jax.diffusion.arrays import Level
from vdm_jax.diffusion.families import VP, Family, FamilyMember
from vdm_jax.errors import UserError

ZERO_SNR = -20.0  # the log-SNR that stands for an SNR of zero at the last timestep; alpha is 4.5e-5 there


@config
class BetaTable(FamilyMember):
    """What the beta schedules share; use one of its subclasses.

    `zero_terminal_snr` shifts and scales the alphas so that the last entry is zero and the first is
    unchanged (Lin et al. 2023, arXiv 2305.08891, algorithm 1). The log-SNR of that last entry, minus
    infinity, is replaced by -20. An eps prediction says nothing about x there, so `Process` refuses the pair.
    """

    steps: Annotated[int, Range(least=2, cap=10**6)] = 1000  # number of timesteps in the table
    zero_terminal_snr: bool = False  # rescale the table so that the last timestep is pure noise

    family: ClassVar[Family] = VP
    snr_shift: ClassVar[float] = 1.0  # that SNRs are divided by, before the last one becomes zero

    def betas(self) -> Float[np.ndarray, " steps"]:
        """Noise variance added at each timestep, float64, before any rescaling."""
        raise NotImplementedError("BetaTable is abstract; use one of its subclasses")

    def table(self) -> Float[np.ndarray, " steps"]:
        """Log-SNR of each integer timestep, float64, strictly decreasing."""
        return _logsnr_table(self)

    def logsnr_at(self, timestep: Real[ArrayLike, "*rest"]) -> Level:
        """Log-SNR of a timestep in [0, steps - 1]; exact at integers, interpolated between."""
        return jnp.interp(
            jnp.asarray(timestep, jnp.float32), jnp.arange(self.steps), jnp.asarray(self.table())
        )

    def timestep(self, logsnr: Level) -> Float[Array, "*rest"]:
        """The timestep in [0, steps - 1] with this log-SNR, as a float; inverse of `logsnr_at`."""
        descending = jnp.asarray(self.table(), jnp.float32)
        from_the_end = jnp.interp(jnp.asarray(logsnr, jnp.float32), descending[::-1], jnp.arange(self.steps))
        return self.steps - 1 - from_the_end

    def logsnr(self, t: Level) -> Level:
        """Log-SNR at time t, any shape."""
        return self.logsnr_at(jnp.asarray(t, jnp.float32) * (self.steps - 1))

    def time(self, logsnr: Level) -> Level:
        """The time at which the schedule has this log-SNR; 0 or 1 beyond its range."""
        return self.timestep(logsnr) / (self.steps - 1)

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """Log-SNR at t = 1 and at t = 0."""
        return float(self.table()[-1]), float(self.table()[0])


@config
class LinearBetaSchedule(BetaTable):
    """Betas equally spaced between `beta_start` and `beta_end` (Ho et al. 2020)."""

    beta_start: BetweenZeroAndOne = 1e-4  # noise variance added at the first timestep
    beta_end: BetweenZeroAndOne = 0.02  # noise variance added at the last timestep

    def __post_init__(self):
        super().__post_init__()
        if self.beta_start > self.beta_end:
            raise UserError(f"{type(self).__name__}.beta_start={self.beta_start} with beta_end={self.beta_end}; "
                            "permitted: beta_start <= beta_end")

    def betas(self) -> Float[np.ndarray, " steps"]:
        """Noise variance added at each timestep, float64, before any rescaling."""
        return np.linspace(self.beta_start, self.beta_end, self.steps)


@config
class ScaledLinearBetaSchedule(LinearBetaSchedule):
    """Square roots of beta equally spaced, as in the code of latent diffusion (Rombach et al. 2022, arXiv 2112.10752).

    The default range is that of Stable Diffusion.
    """

    beta_start: ShareBelowOne = 0.00085  # noise variance added at the first timestep
    beta_end: ShareBelowOne = 0.012  # noise variance added at the last timestep

    def betas(self) -> Float[np.ndarray, " steps"]:
        """Noise variance added at each timestep, float64, before any rescaling."""
        return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2


@config
class ShiftedBetaSchedule(ScaledLinearBetaSchedule):
    """The same with the SNR of every timestep divided by `snr_shift` (CogVideoX: Yang et al. 2024, arXiv 2408.06072,
    whose last timestep has no signal)."""

    zero_terminal_snr: bool = True
    snr_shift: Positive = 3.0


@config
class SquaredCosineBetaSchedule(BetaTable):
    """Betas of a product `cos^2((t + 0.008) / 1.008 * pi / 2)`, up to 0.999 (Nichol & Dhariwal 2021, arXiv 2102.09672,
    section 3.2)."""

    def betas(self) -> Float[np.ndarray, " steps"]:
        """Noise variance added at each timestep, float64, before any rescaling."""
        power = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - power[1:] / power[:-1], 0.999)


@config
class ListedBetaSchedule(BetaTable):
    """Betas that are given one by one."""

    listed: tuple[BetweenZeroAndOne, ...] = ()  # noise variance added at each timestep

    def __post_init__(self):
        super().__post_init__()
        if len(self.listed) != self.steps:
            raise UserError(f"ListedBetaSchedule: {len(self.listed)} betas with steps={self.steps}; permitted: as many")

    def betas(self) -> Float[np.ndarray, " steps"]:
        """Noise variance added at each timestep, float64, before any rescaling."""
        return np.asarray(self.listed, np.float64)


@functools.lru_cache(maxsize=32)
def _logsnr_table(schedule: BetaTable) -> Float[np.ndarray, " steps"]:
    alpha = np.sqrt(np.cumprod(1 - schedule.betas()))
    alpha = alpha / np.sqrt(schedule.snr_shift + (1 - schedule.snr_shift) * alpha**2)
    if schedule.zero_terminal_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    power = alpha[:-1] ** 2 if schedule.zero_terminal_snr else alpha**2
    table = np.log(power) - np.log1p(-power)
    if schedule.zero_terminal_snr:
        table = np.append(table, ZERO_SNR)
    if not np.all(np.diff(table) < 0) or table[-1] < ZERO_SNR:
        raise UserError(
            f"{type(schedule).__name__} with beta_end={schedule.betas()[-1]:g} and steps={schedule.steps} reaches a "
            f"log-SNR below {ZERO_SNR}; permitted: smaller betas or fewer steps"
        )
    table.setflags(write=False)
    return table
