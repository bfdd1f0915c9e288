"""Noise schedules: `logsnr(t)`, strictly decreasing in time t in [0, 1] (0 is clean), and its inverse `time`.

Every schedule belongs to a family (`families.py`) that turns a log-SNR into `(alpha, sigma)`. Angles and
other constants are computed in double precision by Python, and both ends of a range are written so that
float32 keeps full relative precision there: near t = 1, `1 - t` is what carries the information.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from vdm_jax.configuration import LogSNR, Positive, Size, check_value, config
from vdm_jax.diffusion.arrays import Level
from vdm_jax.diffusion.beta_tables import (
    BetaTable,
    LinearBetaSchedule,
    ListedBetaSchedule,
    ScaledLinearBetaSchedule,
    ShiftedBetaSchedule,
    SquaredCosineBetaSchedule,
)
from vdm_jax.diffusion.families import FLOW, VE, VP, Family, FamilyMember
from vdm_jax.errors import UserError

__all__ = [
    "BetaTable",
    "CosineSchedule",
    "EDMSchedule",
    "FlowSchedule",
    "InterpolatedCosineSchedule",
    "LinearBetaSchedule",
    "ScaledLinearBetaSchedule",
    "ShiftedBetaSchedule",
    "Schedule",
    "resolution_shift",
]


def resolution_shift(size: int, reference: int = 64) -> float:
    """Log-SNR shift `2 log(reference / size)` for training at `size` pixels a side.

    Averaging (size/reference)^2 pixels cancels that much noise power, so a larger picture needs as much more
    of it to be equally destroyed (Hoogeboom et al. 2023, arXiv 2301.11093, section 3.1). Negative for sizes
    above the reference. Raises `UserError` unless both are positive.
    """
    check_value(size, Size, "size")
    check_value(reference, Size, "reference")
    return 2 * math.log(reference / size)


@config
class _RangedSchedule(FamilyMember):
    """A schedule between two stated log-SNRs."""

    logsnr_min: LogSNR = -20.0  # log-SNR at t = 1
    logsnr_max: LogSNR = 20.0  # log-SNR at t = 0

    def __post_init__(self):
        if not self.logsnr_min < self.logsnr_max:
            raise UserError(f"{type(self).__name__}.logsnr_min={self.logsnr_min} with logsnr_max={self.logsnr_max}; "
                            "permitted: logsnr_min < logsnr_max")

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """Log-SNR at t = 1 and at t = 0."""
        return self.logsnr_min, self.logsnr_max


def _invert_decreasing(function: Callable[[Level], Level], value: Level) -> Level:
    """The t in [0, 1] at which the decreasing `function` takes `value`, by bisection to float32 precision."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_clean = function(middle) > value
        return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

    low, high = jax.lax.fori_loop(0, 32, halve, (jnp.zeros_like(value), jnp.ones_like(value)))
    return (low + high) / 2


@config
class CosineSchedule(_RangedSchedule):
    """`logsnr(t) = -2 log tan(a t + b) + shift` with a and b such that it runs exactly over the stated range.

    The plain cosine schedule `-2 log tan(pi t / 2)` (Salimans & Ho 2022, arXiv 2202.00512, section 4), its range
    limited by interpolating the angle as in their code, moved by `shift` (Hoogeboom et al. 2023, arXiv 2301.11093,
    section 3.1; see `resolution_shift`).
    The shift moves the middle; the two ends stay at logsnr_max and logsnr_min.
    """

    shift: LogSNR = 0.0  # added to the log-SNR; below 0 is more noise

    family: ClassVar[Family] = VP

    def logsnr(self, t: Level) -> Level:
        """Log-SNR at time t, any shape."""
        t = jnp.asarray(t, jnp.float32)
        first, rest, span = self._angles()
        return 2 * (jnp.log(jnp.sin(rest + span * (1 - t))) - jnp.log(jnp.sin(first + span * t))) + self.shift

    def time(self, logsnr: Level) -> Level:
        """The time at which the schedule has this log-SNR; 0 or 1 beyond its range."""
        first, _, span = self._angles()
        angle = jnp.arctan(jnp.exp((self.shift - jnp.asarray(logsnr, jnp.float32)) / 2))
        return jnp.clip((angle - first) / span, 0, 1)

    def _angles(self) -> tuple[float, float, float]:
        """Angle at t = 0, complement to pi/2 of the angle at t = 1, and the angle between the two."""
        first = math.atan(math.exp((self.shift - self.logsnr_max) / 2))
        rest = math.atan(math.exp((self.logsnr_min - self.shift) / 2))
        return first, rest, math.pi / 2 - first - rest


@config
class InterpolatedCosineSchedule(_RangedSchedule):
    """`t * cosine(t, low_shift) + (1 - t) * cosine(t, high_shift)`: the noisy end uses the lower shift.

    Simple diffusion (Hoogeboom et al. 2023, arXiv 2301.11093, section 3.1): a shift chosen for the image size
    destroys detail too early, so the shift is eased in along time. The paper's formula is also quoted with the two
    weights exchanged; in the order used here, also that of public code, generation starts at the lower shift. The
    inverse is found by bisection.
    """

    low_shift: LogSNR = 0.0  # log-SNR shift towards t = 1, such as resolution_shift(size, 32)
    high_shift: LogSNR = 0.0  # log-SNR shift towards t = 0, such as resolution_shift(size, 256)

    family: ClassVar[Family] = VP

    def __post_init__(self):
        super().__post_init__()
        if self.low_shift > self.high_shift:
            raise UserError(
                f"InterpolatedCosineSchedule.low_shift={self.low_shift} is above "
                f"high_shift={self.high_shift}: their combination need not be monotone in time; "
                "permitted: low_shift <= high_shift"
            )

    def logsnr(self, t: Level) -> Level:
        """Log-SNR at time t, any shape."""
        t = jnp.asarray(t, jnp.float32)
        low, high = (
            CosineSchedule(logsnr_min=self.logsnr_min, logsnr_max=self.logsnr_max, shift=shift).logsnr(t)
            for shift in (self.low_shift, self.high_shift)
        )
        return t * low + (1 - t) * high

    def time(self, logsnr: Level) -> Level:
        """The time at which the schedule has this log-SNR; 0 or 1 beyond its range."""
        return _invert_decreasing(self.logsnr, jnp.asarray(logsnr, jnp.float32))


@config
class EDMSchedule(FamilyMember):
    """Variance-exploding `z = x + sigma eps`, on the ramp of Karras et al. 2022 (arXiv 2206.00364, eq. 5).

    `sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho`.
    """

    sigma_min: Positive = 0.002  # noise standard deviation at t = 0, in units of the video in [-1, 1]
    sigma_max: Positive = 80.0  # noise standard deviation at t = 1
    rho: Positive = 7.0  # how strongly steps crowd at low noise; 1 is linear in sigma

    family: ClassVar[Family] = VE

    def __post_init__(self):
        if not self.sigma_min < self.sigma_max:
            raise UserError(f"EDMSchedule.sigma_min={self.sigma_min} with sigma_max={self.sigma_max}; permitted: "
                            "sigma_min < sigma_max")

    def logsnr(self, t: Level) -> Level:
        """Log-SNR `-2 log sigma` at time t, any shape."""
        low, high = self._roots()
        return -2 * self.rho * jnp.log(low + jnp.asarray(t, jnp.float32) * (high - low))

    def time(self, logsnr: Level) -> Level:
        """The time at which the schedule has this log-SNR; 0 or 1 beyond its range."""
        low, high = self._roots()
        root = jnp.exp(-jnp.asarray(logsnr, jnp.float32) / (2 * self.rho))
        return jnp.clip((root - low) / (high - low), 0, 1)

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """Log-SNR at t = 1 and at t = 0."""
        return -2 * math.log(self.sigma_max), -2 * math.log(self.sigma_min)

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


@config
class FlowSchedule(_RangedSchedule):
    """Rectified flow: `alpha = 1 - t'`, `sigma = t'`, straight paths.

    Liu et al. 2022, arXiv 2209.03003, with time running from data to noise. `t' = s t / (1 + (s - 1) t)` with
    `s = shift` (Esser et al. 2024, arXiv 2403.03206, eq. 23), which is a log-SNR lower by `2 log s`. t' itself
    stops short of 0 and 1, by 4.5e-5 with the default range, where the log-SNR would be infinite.
    """

    shift: Positive = 1.0  # s above; larger is more noise

    family: ClassVar[Family] = FLOW

    def logsnr(self, t: Level) -> Level:
        """Log-SNR at time t, any shape."""
        t = jnp.asarray(t, jnp.float32)
        first, rest, span = self._sigmas()
        return 2 * (jnp.log(rest + span * (1 - t)) - jnp.log(first + span * t)) - 2 * math.log(self.shift)

    def time(self, logsnr: Level) -> Level:
        """The time at which the schedule has this log-SNR; 0 or 1 beyond its range."""
        first, _, span = self._sigmas()
        sigma = jax.nn.sigmoid(-jnp.asarray(logsnr, jnp.float32) / 2 - math.log(self.shift))
        return jnp.clip((sigma - first) / span, 0, 1)

    def _sigmas(self) -> tuple[float, float, float]:
        """Before the shift: sigma at t = 0, alpha at t = 1, and the distance between the two ends."""
        first = 1 / (1 + self.shift * math.exp(self.logsnr_max / 2))
        rest = 1 / (1 + math.exp(-self.logsnr_min / 2) / self.shift)
        return first, rest, 1 - first - rest


Schedule = (
    CosineSchedule
    | InterpolatedCosineSchedule
    | LinearBetaSchedule
    | ScaledLinearBetaSchedule
    | ShiftedBetaSchedule
    | SquaredCosineBetaSchedule
    | ListedBetaSchedule
    | EDMSchedule
    | FlowSchedule
)
