"""Where a sampler evaluates the denoiser: a decreasing-noise list of log-SNR levels, one per step.

The last step returns the estimate made at the last level. Grids over time and log-SNR divide their range into
`steps` equal parts and evaluate at the noisy end of each; the Karras grid also evaluates at the very lowest
noise.
"""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdm_jax.configuration import Count, Positive, SizeOrZero, config
from vdm_jax.diffusion.flow_sigmas import FlowSigmas
from vdm_jax.diffusion.schedules import BetaTable, EDMSchedule, Schedule
from vdm_jax.errors import UserError


@config
class TimeGrid:
    """Equal steps in the schedule's time: `start, start (1 - 1/steps), ...`; time 0 is not evaluated."""

    def levels(self, schedule: Schedule, steps: int, start: float) -> Float[Array, " steps"]:
        """Log-SNR of each evaluation, from time `start` on."""
        return schedule.logsnr(start * (1 - jnp.arange(steps) / steps))


@config
class LogSNRGrid:
    """Equal steps in log-SNR (Lu et al. 2022, arXiv 2206.00927); the highest is not evaluated."""

    def levels(self, schedule: Schedule, steps: int, start: float) -> Float[Array, " steps"]:
        """Log-SNR of each evaluation, from time `start` on."""
        first = schedule.logsnr(start)
        return first + (schedule.logsnr_range[1] - first) * jnp.arange(steps) / steps


@config
class KarrasGrid:
    """Equal steps in `(sigma / alpha)^(1/rho)`, both ends evaluated.

    Karras et al. 2022, arXiv 2206.00364, eq. 5. The limits default to the schedule's own. Schedules with a
    log-SNR down to -20 reach a sigma/alpha of e^10; limits such as 0.002 and 80 spend the steps better.
    """

    rho: Positive = 7.0  # how strongly steps crowd at low noise; 1 is linear in sigma
    sigma_min: Positive | None = None  # lowest sigma / alpha; None: that of time 0
    sigma_max: Positive | None = None  # highest sigma / alpha when sampling from time 1; None: that of time 1

    def levels(self, schedule: Schedule, steps: int, start: float) -> Float[Array, " steps"]:
        """Log-SNR of each evaluation, from time `start` on.

        Raises `UserError` for limits beyond the schedule's range, at which no network was trained.
        """
        sigmas = [math.exp(-logsnr / 2) for logsnr in schedule.logsnr_range]
        lowest = sigmas[1] if self.sigma_min is None else self.sigma_min
        highest = sigmas[0] if self.sigma_max is None else self.sigma_max
        if not sigmas[1] <= lowest * (1 + 1e-6) < highest <= sigmas[0] * (1 + 1e-6):
            raise UserError(
                f"KarrasGrid(sigma_min={self.sigma_min}, sigma_max={self.sigma_max}) with "
                f"{type(schedule).__name__}; permitted: "
                f"{sigmas[1]:g} <= sigma_min < sigma_max <= {sigmas[0]:g}"
            )
        first = math.log(highest) if start == 1 else -schedule.logsnr(start) / 2
        high, low = jnp.exp(first / self.rho), lowest ** (1 / self.rho)
        ramp = jnp.linspace(1.0, 0.0, steps) if steps > 1 else jnp.ones(1)
        return -2 * self.rho * jnp.log(low + ramp * (high - low))


@config
class TimestepGrid:
    """Whole timesteps of a table of betas, as samplers of released latent models choose them.

    Of T timesteps and n steps (Lin et al. 2023, arXiv 2305.08891, table 2): `leading` takes multiples of `T // n`, from
    0 on; `trailing` every `T / n`-th from the last one down; `linspace` n equally spaced ones with both ends. `offset`
    is added to `leading`. `distilled` takes n of the last timesteps of `original` equal parts, on which a latent
    consistency model was trained (Luo et al. 2023, arXiv 2310.04378). Sampling from an earlier `start` takes that share
    of T, and of the original parts.

    Where the released model ends on the alpha of timestep 0 and not on its estimate, `sample` takes
    `stop=schedule.table()[0]`.
    """

    spacing: Literal["leading", "trailing", "linspace", "distilled"] = "leading"
    offset: SizeOrZero = 0  # timesteps added to `leading`; 1 for Stable Diffusion
    original: Count = 50  # parts of `distilled`

    def __post_init__(self):
        if self.offset and self.spacing != "leading":
            raise UserError(f"TimestepGrid.offset={self.offset} with spacing={self.spacing!r}; permitted: 0, or above "
                            "with 'leading'")

    def timesteps(self, total: int, steps: int, start: float) -> Int[np.ndarray, " steps"]:
        """The timesteps in [0, total - 1], decreasing. Raises `UserError` for more steps than there are."""
        count = int(total * start + 1e-9)
        parts = int(self.original * start + 1e-9) if self.spacing == "distilled" else count
        if steps > parts or parts > total:
            raise UserError(f"steps={steps} on {self} of {total} timesteps from start={start}; permitted: up to "
                            f"{min(parts, total)}")
        if self.spacing == "leading":
            numbers = np.arange(steps)[::-1] * (count // steps) + self.offset
        elif self.spacing == "trailing":
            # In this order of operations halves round as they do in published code.
            numbers = np.round(np.arange(count, 0, -count / steps)) - 1
        elif self.spacing == "linspace":
            numbers = np.linspace(0, count - 1, steps).round()[::-1]
        else:
            numbers = np.arange(parts, 0, -1)[np.arange(steps) * parts // steps] * (total // self.original) - 1
        return np.minimum(numbers, total - 1).astype(int)

    def levels(self, schedule: Schedule, steps: int, start: float) -> Float[Array, " steps"]:
        """Log-SNR of each evaluation. Raises `UserError` for a schedule without timesteps."""
        if not isinstance(schedule, BetaTable):
            raise UserError(f"TimestepGrid with {type(schedule).__name__}; permitted: a schedule of "
                            "betas, such as LinearBetaSchedule")
        return jnp.asarray(schedule.table()[self.timesteps(schedule.steps, steps, start)], jnp.float32)


Grid = TimeGrid | LogSNRGrid | KarrasGrid | TimestepGrid | FlowSigmas


def default_grid(schedule: Schedule) -> Grid:
    """The grid a schedule was published with: its Karras ramp for EDM, uniform time for all others."""
    return KarrasGrid(rho=schedule.rho) if isinstance(schedule, EDMSchedule) else TimeGrid()
