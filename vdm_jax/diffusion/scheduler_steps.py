"""The noise levels that the schedulers of diffusers step through, as numbers.

The classes of diffusers differ in which timesteps they choose, where they end, how large the noise is that they begin
with, and what they condition the network on. All of that becomes a `Discretisation`; the steps themselves are those of
`samplers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdm_jax.configuration import Count, Positive, SizeOrZero, config
from vdm_jax.diffusion.beta_tables import BetaTable, SquaredCosineBetaSchedule
from vdm_jax.diffusion.flow_sigmas import FlowSigmas, log_snr
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.schedules import EDMSchedule, FlowSchedule, Schedule
from vdm_jax.diffusion.steps import Step
from vdm_jax.errors import UserError

ROWS = 1024  # a table of embedded timesteps has a multiple of so many
SMALLEST = np.log(2.0**-24) - np.log1p(-(2.0**-24))  # log-SNR that sigma-based classes put in the place of zero SNR
CLEAN = 60.0  # log-SNR that stands for an alpha of one
NOTHING = -60.0  # log-SNR where others have an alpha of zero; it is 9e-14 here
MOST_STEPS = 10_000
RHO = 7.0  # of the Karras sigmas; the classes have no option for it

# In the place of zero SNR, for a multistep method that is to see no estimate made there: from so far away none counts
BOTTOM = -1e6
COGVIDEOX = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")

Name = Literal[
    "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"]


class Timesteps(NamedTuple):
    """What the network embeds as the noise level: a number of its own for each log-SNR, between them interpolated."""

    levels: Float[np.ndarray, " N"]  # log-SNRs, increasing
    numbers: Float[np.ndarray, " N"]  # timesteps, ln(sigma) / 4, or 1000 sigma of a flow

    def log_snrs(
        self, schedule: BetaTable | FlowSchedule | None
    ) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """The levels, and the log-SNR at which a network embeds the number: by the table of its timesteps, by 1000
        sigma, or without either by ln(sigma / alpha) / 4."""
        if isinstance(schedule, FlowSchedule):
            return self.levels, log_snr(self.numbers / 1000).astype(np.float32)
        if schedule is None:
            return self.levels, -8 * self.numbers
        table = np.array(schedule.table())
        return self.levels, np.interp(self.numbers, np.arange(len(table)), table).astype(np.float32)


class Discretisation(NamedTuple):
    """The steps of one sampling run."""

    steps: Step  # stacked, of numpy arrays; `count` is None
    initial_std: float  # standard deviation of the z to begin with
    timesteps: Timesteps


class _Walk(NamedTuple):
    """The levels of a discretisation."""

    levels: Float[np.ndarray, " N"]  # log-SNR of each step
    following: Float[np.ndarray, " N"]  # log-SNR that it goes to
    numbers: Float[np.ndarray, " N"]  # that the network embeds
    estimate: bool = True  # whether the last step's estimate is the result, and not z where it goes to
    start: float = 1.0


@config
class SchedulerSteps:
    """The noise levels of a scheduler of diffusers, by the options of its class that decide about them."""

    scheduler: Name = "DDIMScheduler"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: SizeOrZero = 0  # timesteps added to `leading`
    sigmas: Literal["karras", "exponential", "beta", "lu"] | None = None  # spacing of sigmas; None: by timesteps
    sigma_min: Positive | None = None  # lowest of spaced sigmas; None: that of the table
    sigma_max: Positive | None = None  # highest of spaced sigmas; None: that of the table
    rho: Positive = RHO  # of Karras sigmas of EDMEulerScheduler
    set_alpha_to_one: bool = True  # DDIM and PNDM end at an alpha of one, not at that of timestep 0
    final_sigma: Literal["zero", "sigma_min"] = "zero"  # where multistep solvers end
    log_sigma_embedding: bool = False  # the network embeds ln(sigma) / 4 and not the timestep
    noise_at_end: bool = False  # DDPM draws noise in its last step too
    original_inference_steps: Count = 50  # parts of the table on which a latent consistency model was trained
    flow: FlowSigmas | None = None  # the sigmas of flow matching, of UniPC and FlowMatchEuler; None: those of a table

    def __post_init__(self):
        euler = self.scheduler == "FlowMatchEulerDiscreteScheduler"
        if (self.flow is None) if euler else (self.flow and self.scheduler != "UniPCMultistepScheduler"):
            raise UserError(f"SchedulerSteps.flow={self.flow} of {self.scheduler}; permitted: FlowSigmas(...) for "
                            "FlowMatchEulerDiscreteScheduler, and that or None for UniPCMultistepScheduler")

    def discretise(self, schedule: Schedule, steps: int, tokens: int | None = None) -> Discretisation:
        """So many steps, for a video of so many tokens. Raises `UserError` for numbers of steps that the class cannot
        take."""
        if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
            raise UserError(f"num_inference_steps={steps!r}; permitted: a whole number from 1 to {MOST_STEPS}")
        wanted = FlowSchedule if self.flow else EDMSchedule if self.scheduler == "EDMEulerScheduler" else BetaTable
        if not isinstance(schedule, wanted):
            raise UserError(f"{self.scheduler} with {type(schedule).__name__}; permitted: "
                            f"{'a schedule of betas' if wanted is BetaTable else wanted.__name__}")
        walk = _flow(self, steps, tokens) if self.flow else _WALKS[self.scheduler](self, schedule, steps)
        previous = np.concatenate([walk.levels[:1] - 1, walk.levels[:-1]])
        last = np.zeros(steps, bool)
        last[-1] = walk.estimate
        rows = Step(np.arange(steps), *(np.asarray(a, np.float32) for a in (previous, walk.levels, walk.following)),
                    last, None)
        return Discretisation(rows, walk.start, _timesteps(walk))

    def table(self, schedule: BetaTable) -> Float[np.ndarray, " steps"]:
        """Log-SNR of every timestep."""
        table = np.array(schedule.table())
        if schedule.zero_terminal_snr:
            single = ("CogVideoXDDIMScheduler", "DDIMScheduler", "DDPMScheduler", "LCMScheduler")
            table[-1] = NOTHING if self.scheduler in single else SMALLEST
            table[-1] = BOTTOM if self.scheduler == "CogVideoXDPMScheduler" else table[-1]
        return table

    def timesteps(self, total: int, steps: int) -> Int[np.ndarray, " steps"]:
        """Whole timesteps, decreasing."""
        offset = self.steps_offset if self.timestep_spacing == "leading" else 0
        return TimestepGrid(spacing=self.timestep_spacing, offset=offset).timesteps(total, steps, 1.0)


def _between_timesteps(own: SchedulerSteps, schedule: BetaTable, steps: int) -> _Walk:
    """DDIM, PNDM and those of CogVideoX go from timestep n to n - T // steps, whichever comes next in their list."""
    table, timesteps = own.table(schedule), own.timesteps(schedule.steps, steps)
    before = timesteps - schedule.steps // steps
    if own.scheduler == "PNDMScheduler" and (before[:-1] != timesteps[1:]).any():
        raise UserError(f"{own.scheduler}: num_inference_steps={steps} with timestep_spacing="
                        f"{own.timestep_spacing!r} are not steps of equal length; permitted: 'leading', or with "
                        f"'trailing' numbers that divide {schedule.steps}")
    to_one = bool(before[-1] < 0 and own.set_alpha_to_one)
    following = table[np.maximum(before, 0)]
    if to_one:
        following[-1] = CLEAN
    # Others are then at their estimate, PNDM at what it extrapolates.
    return _Walk(table[timesteps], following, timesteps, estimate=to_one and own.scheduler != "PNDMScheduler")


def _between_sigmas(own: SchedulerSteps, schedule: BetaTable, steps: int) -> _Walk:
    """Euler and Heun go along sigma / alpha, and may evaluate between timesteps."""
    table = own.table(schedule)
    if own.timestep_spacing == "linspace":
        numbers = np.linspace(0, schedule.steps - 1, steps)[::-1]
    else:
        numbers = own.timesteps(schedule.steps, steps)
    sigmas = np.interp(numbers, np.arange(len(table)), np.exp(-table / 2))
    if own.sigmas is not None:
        sigmas = _spaced(own, sigmas[-1], sigmas[0], steps)
        numbers = _timestep_of(sigmas, table)
    if own.log_sigma_embedding:
        numbers = np.log(sigmas) / 4
    # Those that have both ends of the table begin with noise as large as sigma, against which data is nothing.
    start = 1.0 if own.timestep_spacing == "leading" else sigmas[0] / np.sqrt(1 + sigmas[0] ** 2)
    return _to_the_end(sigmas, numbers, start)


def _multistep(own: SchedulerSteps, schedule: BetaTable, steps: int) -> _Walk:
    """DPM-Solver, UniPC and DEIS: of one timestep more than they take, the last is left out."""
    table, total, spacing = own.table(schedule), schedule.steps, own.timestep_spacing
    dpm = own.scheduler == "DPMSolverMultistepScheduler"
    lowest = float(np.exp(-table[0] / 2))
    if own.sigmas is not None:
        sigmas = _spaced(own, lowest, float(np.exp(-table[-1] / 2)), steps)
        # Published code rounds these timesteps in some cases and cuts them off in the others; to 1e-6 they are whole.
        rounded = own.sigmas in ("karras", "lu") and not (dpm and isinstance(schedule, SquaredCosineBetaSchedule))
        timesteps = _timestep_of(sigmas, table)
        timesteps = np.round(timesteps) if rounded else np.floor(timesteps + 1e-6)
        lowest = lowest if dpm else sigmas[-1]
    else:
        most = total if spacing == "trailing" else total - 1
        if steps > most:
            raise UserError(f"num_inference_steps={steps} of {own.scheduler} with {total} timesteps; permitted: up to "
                            f"{most}")
        if spacing == "trailing":
            timesteps = own.timesteps(total, steps)
        elif spacing == "leading":
            timesteps = np.arange(steps + 1)[:0:-1] * (total // (steps + 1)) + own.steps_offset
            timesteps = np.minimum(timesteps, total - 1)
        else:
            timesteps = np.linspace(0, total - 1, steps + 1).round().astype(int)[:0:-1]
        sigmas = np.exp(-table[timesteps] / 2)
    walk = _to_the_end(sigmas, timesteps, 1.0)
    if own.final_sigma == "zero":
        return walk
    return walk._replace(following=np.append(walk.following[:-1], -2 * np.log(lowest)), estimate=False)


def _listed(own: SchedulerSteps, schedule: BetaTable, steps: int) -> _Walk:
    """DDPM goes from timestep to timestep, and at last to no noise; the largest variance draws some there too."""
    timesteps = own.timesteps(schedule.steps, steps)
    levels = own.table(schedule)[timesteps]
    drawn = own.noise_at_end and timesteps[-1] > 0
    return _Walk(levels, np.append(levels[1:], CLEAN), timesteps, estimate=not drawn)


def _extrapolated(own: SchedulerSteps, schedule: BetaTable, steps: int) -> _Walk:
    """LMS extrapolates in its last step too, to a sigma of 0."""
    return _between_sigmas(own, schedule, steps)._replace(estimate=False)


def _consistency(own: SchedulerSteps, schedule: BetaTable, steps: int) -> _Walk:
    """Timesteps that a latent consistency model was trained on."""
    grid = TimestepGrid(spacing="distilled", original=own.original_inference_steps)
    timesteps = grid.timesteps(schedule.steps, steps, 1.0)
    levels = own.table(schedule)[timesteps]
    return _Walk(levels, np.append(levels[1:], CLEAN), timesteps)


def _flow(own: SchedulerSteps, steps: int, tokens: int | None) -> _Walk:
    """Flow matching: UniPC has the network embed whole numbers."""
    sigmas = own.flow.sigmas(steps, tokens)
    numbers = 1000 * sigmas
    levels = log_snr(sigmas)
    numbers = np.floor(numbers) if own.scheduler == "UniPCMultistepScheduler" else numbers
    return _Walk(levels, np.append(levels[1:], CLEAN), numbers)


def _edm(own: SchedulerSteps, schedule: Schedule, steps: int) -> _Walk:
    ends = float(own.sigma_min), float(own.sigma_max), steps
    sigmas = _karras(*ends, own.rho) if own.sigmas == "karras" else _geometric(*ends)
    return _to_the_end(sigmas, np.log(sigmas) / 4, np.sqrt(float(own.sigma_max) ** 2 + 1))


_WALKS: dict[str, Callable[[SchedulerSteps, Schedule, int], _Walk]] = {
    **dict.fromkeys(COGVIDEOX, _between_timesteps),
    "DDIMScheduler": _between_timesteps, "DDPMScheduler": _listed, "DEISMultistepScheduler": _multistep,
    "DPMSolverMultistepScheduler": _multistep, "EDMEulerScheduler": _edm,
    "EulerAncestralDiscreteScheduler": _between_sigmas, "EulerDiscreteScheduler": _between_sigmas,
    "HeunDiscreteScheduler": _between_sigmas, "LCMScheduler": _consistency, "LMSDiscreteScheduler": _extrapolated,
    "PNDMScheduler": _between_timesteps, "UniPCMultistepScheduler": _multistep}


def _timesteps(walk: _Walk) -> Timesteps:
    """The network's numbers, as many whatever the steps, so that a program does not depend on these."""
    more = -len(walk.levels) % ROWS
    levels = np.concatenate([walk.levels, walk.levels[-1] + 1 + np.arange(more)])
    return Timesteps(levels.astype(np.float32), np.pad(walk.numbers, (0, more), mode="edge").astype(np.float32))


def _to_the_end(sigmas: Float[np.ndarray, " N"], numbers: np.ndarray, start: float) -> _Walk:
    """From sigma to sigma, and at last the estimate."""
    levels = -2 * np.log(sigmas)
    return _Walk(levels, np.append(levels[1:], CLEAN), numbers, start=float(start))


def _karras(low: float, high: float, steps: int, rho: float = RHO) -> Float[np.ndarray, " N"]:
    """Sigmas equally spaced in their rho-th root (Karras et al. 2022, arXiv 2206.00364, eq. 5), decreasing."""
    return (high ** (1 / rho) + np.linspace(0, 1, steps) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def _geometric(low: float, high: float, steps: int) -> Float[np.ndarray, " N"]:
    """Sigmas equally spaced in their logarithm, decreasing."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps))


def _spaced(own: SchedulerSteps, low: float, high: float, steps: int) -> Float[np.ndarray, " N"]:
    """So many sigmas between two, or the scheduler's own ends. Raises `UserError` unless the first end is lower."""
    low = low if own.sigma_min is None else own.sigma_min
    high = high if own.sigma_max is None else own.sigma_max
    if not low <= high:
        raise UserError(f"{own.scheduler}: sigmas from {high:g} down to {low:g}; permitted: sigma_min < sigma_max")
    if own.sigmas == "karras":
        return _karras(low, high, steps)
    if own.sigmas == "beta":  # quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173)
        from scipy.stats import beta

        return low + (high - low) * beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    return _geometric(low, high, steps)  # exponential; Lu et al. 2022, arXiv 2206.00927 space lambda = -ln sigma so


def _timestep_of(sigmas: Float[np.ndarray, " N"], table: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " N"]:
    """The timestep of each sigma, interpolated in its logarithm."""
    return np.interp(np.log(sigmas), -table / 2, np.arange(len(table)))
