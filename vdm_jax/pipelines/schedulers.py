"""`scheduler_config.json` of a released model as one of our samplers, with the levels that it goes through.

The classes of diffusers differ in which timesteps they choose, where they end, and how large the noise is that they
begin with. All of that becomes numbers here (`Trajectory`); the steps themselves are those of `vdm_jax.diffusion`. The
options of each class are in `scheduler_options.py`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdm_jax.diffusion.beta_tables import (
    BetaTable,
    LinearBetaSchedule,
    ListedBetaSchedule,
    ScaledLinearBetaSchedule,
    SquaredCosineBetaSchedule,
)
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import (
    DDIM,
    DEIS,
    LMS,
    PNDM,
    Ancestral,
    Consistency,
    DPMSolver,
    Heun,
    Sampler,
    Step,
    UniPC,
)
from vdm_jax.diffusion.schedules import EDMSchedule
from vdm_jax.diffusion.thresholds import Threshold
from vdm_jax.errors import UserError
from vdm_jax.pipelines.denoising import Method, Told
from vdm_jax.pipelines.scheduler_options import PREDICTIONS, RHO, SPREADS, checked, class_named, taken_over
from vdm_jax.weights.tensor_files import read_json

ROWS = 1024  # a table of what the network is told has a multiple of so many
SMALLEST = np.log(2.0**-24) - np.log1p(-(2.0**-24))  # log-SNR that sigma-based classes put in the place of zero SNR
CLEAN = 60.0  # log-SNR that stands for an alpha of one
NOTHING = -60.0  # log-SNR where others have an alpha of zero; it is 9e-14 here
MOST_STEPS = 10_000


class Trajectory(NamedTuple):
    """So many steps of a scheduler."""

    method: Method
    start: float  # standard deviation of the z to begin with
    steps: Step  # stacked, of numpy arrays
    told: Told


class _Walk(NamedTuple):
    """The levels of a trajectory."""

    levels: Float[np.ndarray, " N"]  # log-SNR of each step
    following: Float[np.ndarray, " N"]  # log-SNR that it goes to
    told: Float[np.ndarray, " N"]  # what the network is told
    estimate: bool = True  # whether the last step's estimate is the result, and not z where it goes to
    start: float = 1.0


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers, read. Raises `UserError` for a class, an option or a value that we do not have."""

    name: str  # of its class
    options: Mapping[str, Any]  # all that the class has
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)  # what was given
    threshold_per: Literal["clip", "frame"] = "clip"  # what dynamic thresholding measures; the pipeline says

    def __post_init__(self):
        object.__setattr__(self, "stated", dict(self.options))
        object.__setattr__(self, "options", checked(self.name, self.options))
        self.method  # noqa: B018  # what does not go together raises here

    @property
    def schedule(self) -> BetaTable | EDMSchedule:
        """The noise that the network was trained with."""
        own = self.options
        if self.name == "EDMEulerScheduler":
            return EDMSchedule(sigma_min=own["sigma_min"], sigma_max=own["sigma_max"], rho=own["rho"])
        shared = {"steps": own["num_train_timesteps"], "zero_terminal_snr": bool(own.get("rescale_betas_zero_snr"))}
        if own["trained_betas"] is not None:
            return ListedBetaSchedule(listed=tuple(own["trained_betas"]), **shared)
        if own["beta_schedule"] == "squaredcos_cap_v2":
            return SquaredCosineBetaSchedule(**shared)
        kind = LinearBetaSchedule if own["beta_schedule"] == "linear" else ScaledLinearBetaSchedule
        return kind(beta_start=own["beta_start"], beta_end=own["beta_end"], **shared)

    @property
    def threshold(self) -> Threshold | None:
        """What bounds each estimate of the clean latents."""
        own = self.options
        if own.get("thresholding"):
            # UniPC bounds nothing where it predicts the noise.
            return Threshold(limit=own["sample_max_value"], ratio=own["dynamic_thresholding_ratio"],
                             per=self.threshold_per) if own.get("predict_x0", True) else None
        return Threshold(limit=own["clip_sample_range"]) if own.get("clip_sample") else None

    @property
    def method(self) -> Method:
        """Sampler and process. Raises `UserError` for a prediction that is not defined with the schedule."""
        own = self.options
        if self.name == "EDMEulerScheduler":
            return Method(sampler=DDIM(), process=Process(schedule=self.schedule, prediction="edm",
                                                          sigma_data=own["sigma_data"]))
        return Method(sampler=_SAMPLERS[self.name](self),
                      process=Process(schedule=self.schedule, prediction=PREDICTIONS[own["prediction_type"]]),
                      consistency=float(own["timestep_scaling"]) if self.name == "LCMScheduler" else None,
                      threshold=None if self.name == "DDIMScheduler" else self.threshold)  # DDIM bounds x_hat alone

    def trajectory(self, steps: int) -> Trajectory:
        """The levels of so many steps. Raises `UserError` for numbers of steps that the class cannot take."""
        if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
            raise UserError(f"num_inference_steps={steps!r}; permitted: a whole number from 1 to {MOST_STEPS}")
        walk = _WALKS[self.name](self, steps)
        previous = np.concatenate([walk.levels[:1] - 1, walk.levels[:-1]])
        last = np.zeros(steps, bool)
        last[-1] = walk.estimate
        rows = Step(np.arange(steps), *(np.asarray(a, np.float32) for a in (previous, walk.levels, walk.following)),
                    last, np.full(steps, steps))
        return Trajectory(self.method, walk.start, rows, _told(walk))

    def table(self) -> Float[np.ndarray, " steps"]:
        """Log-SNR of every timestep."""
        table = np.array(self.schedule.table())
        if self.options.get("rescale_betas_zero_snr"):
            table[-1] = NOTHING if self.name in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler") else SMALLEST
        return table

    def timesteps(self, steps: int) -> Int[np.ndarray, " steps"]:
        """Whole timesteps, decreasing."""
        spacing = self.options["timestep_spacing"]
        offset = self.options["steps_offset"] if spacing == "leading" else 0
        return TimestepGrid(spacing=spacing, offset=offset).timesteps(self.options["num_train_timesteps"], steps, 1.0)


def read_scheduler(folder: str | os.PathLike, name: str | None = None) -> Scheduler:
    """The scheduler of a folder with `scheduler_config.json`, or the one called `name` with what that file states.

    Raises `UserError` for what we do not have.
    """
    path = pathlib.Path(folder) / "scheduler_config.json"
    data = read_json(path)
    stated = {k: v for k, v in data.items() if not k.startswith("_")}
    kind, more = (data.get("_class_name"), {}) if name is None else class_named(name)
    if name is not None and kind != data.get("_class_name"):
        stated = taken_over(kind, stated)
    try:
        return Scheduler(str(kind), {**stated, **more})
    except UserError as error:
        raise UserError(f"{path}: {error}", error.code) from None


def _dpm(scheduler: Scheduler) -> DPMSolver:
    own = scheduler.options
    return DPMSolver(
        order=own["solver_order"], predict="x" if own["algorithm_type"].endswith("++") else "eps",
        sde=own["algorithm_type"].startswith("sde"), solver=own["solver_type"], third="diffusers",
        lower_order_final=own["lower_order_final"], euler_at_final=own["euler_at_final"])


def _unipc(scheduler: Scheduler) -> UniPC:
    own = scheduler.options
    return UniPC(order=own["solver_order"], predict="x" if own["predict_x0"] else "eps", variant=own["solver_type"],
                 lower_order_final=own["lower_order_final"], uncorrected=tuple(own["disable_corrector"]))


_SAMPLERS: dict[str, Callable[[Scheduler], Sampler]] = {
    "DDIMScheduler": lambda s: DDIM(threshold=s.threshold),
    "DDPMScheduler": lambda s: Ancestral(gamma=1.0 if s.options["variance_type"] == "fixed_large" else 0.0),
    "DEISMultistepScheduler": lambda s: DEIS(order=s.options["solver_order"],
                                             lower_order_final=s.options["lower_order_final"]),
    "DPMSolverMultistepScheduler": _dpm,
    "EulerAncestralDiscreteScheduler": lambda s: DDIM(eta=1.0),
    "EulerDiscreteScheduler": lambda s: DDIM(),
    "HeunDiscreteScheduler": lambda s: Heun(along="sigma"),
    "LCMScheduler": lambda s: Consistency(),
    "LMSDiscreteScheduler": lambda s: LMS(),
    "PNDMScheduler": lambda s: PNDM(extrapolate="v" if s.options["prediction_type"] == "v_prediction" else "eps"),
    "UniPCMultistepScheduler": _unipc,
}


def _between_timesteps(scheduler: Scheduler, steps: int) -> _Walk:
    """DDIM and PNDM go from timestep n to n - T // steps, whichever comes next in their list."""
    own, table, timesteps = scheduler.options, scheduler.table(), scheduler.timesteps(steps)
    before = timesteps - own["num_train_timesteps"] // steps
    if scheduler.name == "PNDMScheduler" and (before[:-1] != timesteps[1:]).any():
        raise UserError(f"{scheduler.name}: num_inference_steps={steps} with timestep_spacing="
                        f"{own['timestep_spacing']!r} are not steps of equal length; permitted: 'leading', or with "
                        f"'trailing' numbers that divide {own['num_train_timesteps']}")
    to_one = bool(before[-1] < 0 and own["set_alpha_to_one"])
    following = table[np.maximum(before, 0)]
    if to_one:
        following[-1] = CLEAN
    # DDIM is then at its estimate, PNDM at what it extrapolates.
    return _Walk(table[timesteps], following, timesteps, estimate=to_one and scheduler.name == "DDIMScheduler")


def _between_sigmas(scheduler: Scheduler, steps: int) -> _Walk:
    """Euler and Heun go along sigma / alpha, and may evaluate between timesteps."""
    own, table = scheduler.options, scheduler.table()
    if own["timestep_spacing"] == "linspace":
        numbers = np.linspace(0, own["num_train_timesteps"] - 1, steps)[::-1]
    else:
        numbers = scheduler.timesteps(steps)
    sigmas = np.interp(numbers, np.arange(len(table)), np.exp(-table / 2))
    if any(own.get(option) for option in SPREADS):
        sigmas = _spread(scheduler, sigmas[-1], sigmas[0], steps)
        numbers = _timestep_of(sigmas, table)
    if own.get("timestep_type") == "continuous" and own["prediction_type"] == "v_prediction":
        numbers = np.log(sigmas) / 4
    # Those that have both ends of the table begin with noise as large as sigma, beside which data is nothing.
    start = 1.0 if own["timestep_spacing"] == "leading" else sigmas[0] / np.sqrt(1 + sigmas[0] ** 2)
    return _to_the_end(sigmas, numbers, start)


def _multistep(scheduler: Scheduler, steps: int) -> _Walk:
    """DPM-Solver, UniPC and DEIS: of one timestep more than they take, the last is left out."""
    own, table = scheduler.options, scheduler.table()
    total, spacing = own["num_train_timesteps"], own["timestep_spacing"]
    lowest = float(np.exp(-table[0] / 2))
    if any(own.get(option) for option in SPREADS):
        sigmas = _spread(scheduler, lowest, float(np.exp(-table[-1] / 2)), steps)
        # Published code rounds these timesteps in some cases and cuts them off in the others; to 1e-6 they are whole.
        rounded = own["use_karras_sigmas"] or own.get("use_lu_lambdas")
        if scheduler.name == "DPMSolverMultistepScheduler" and own["beta_schedule"] == "squaredcos_cap_v2":
            rounded = False
        timesteps = _timestep_of(sigmas, table)
        timesteps = np.round(timesteps) if rounded else np.floor(timesteps + 1e-6)
        lowest = lowest if scheduler.name == "DPMSolverMultistepScheduler" else sigmas[-1]
    else:
        most = total if spacing == "trailing" else total - 1
        if steps > most:
            raise UserError(f"num_inference_steps={steps} of {scheduler.name} with {total} timesteps; permitted: up to "
                            f"{most}")
        if spacing == "trailing":
            timesteps = scheduler.timesteps(steps)
        elif spacing == "leading":
            timesteps = np.arange(steps + 1)[:0:-1] * (total // (steps + 1)) + own["steps_offset"]
            timesteps = np.minimum(timesteps, total - 1)
        else:
            timesteps = np.linspace(0, total - 1, steps + 1).round().astype(int)[:0:-1]
        sigmas = np.exp(-table[timesteps] / 2)
    walk = _to_the_end(sigmas, timesteps, 1.0)
    if own.get("final_sigmas_type") == "zero":
        return walk
    return walk._replace(following=np.append(walk.following[:-1], -2 * np.log(lowest)), estimate=False)


def _listed(scheduler: Scheduler, steps: int) -> _Walk:
    """DDPM goes from timestep to timestep, and at last to no noise; the largest variance draws some there too."""
    table, timesteps = scheduler.table(), scheduler.timesteps(steps)
    levels = table[timesteps]
    drawn = scheduler.options["variance_type"] == "fixed_large" and timesteps[-1] > 0
    return _Walk(levels, np.append(levels[1:], CLEAN), timesteps, estimate=not drawn)


def _extrapolated(scheduler: Scheduler, steps: int) -> _Walk:
    """LMS extrapolates in its last step too, to a sigma of 0."""
    return _between_sigmas(scheduler, steps)._replace(estimate=False)


def _consistency(scheduler: Scheduler, steps: int) -> _Walk:
    """Timesteps that a latent consistency model was trained on."""
    own, table = scheduler.options, scheduler.table()
    grid = TimestepGrid(spacing="distilled", original=own["original_inference_steps"])
    timesteps = grid.timesteps(own["num_train_timesteps"], steps, 1.0)
    levels = table[timesteps]
    return _Walk(levels, np.append(levels[1:], CLEAN), timesteps)


def _edm(scheduler: Scheduler, steps: int) -> _Walk:
    own = scheduler.options
    ends = float(own["sigma_min"]), float(own["sigma_max"]), steps
    sigmas = _karras(*ends, own["rho"]) if own["sigma_schedule"] == "karras" else _geometric(*ends)
    return _to_the_end(sigmas, np.log(sigmas) / 4, np.sqrt(float(own["sigma_max"]) ** 2 + 1))


_WALKS: dict[str, Callable[[Scheduler, int], _Walk]] = {
    "DDIMScheduler": _between_timesteps, "DDPMScheduler": _listed, "DEISMultistepScheduler": _multistep,
    "DPMSolverMultistepScheduler": _multistep, "EDMEulerScheduler": _edm,
    "EulerAncestralDiscreteScheduler": _between_sigmas, "EulerDiscreteScheduler": _between_sigmas,
    "HeunDiscreteScheduler": _between_sigmas, "LCMScheduler": _consistency, "LMSDiscreteScheduler": _extrapolated,
    "PNDMScheduler": _between_timesteps, "UniPCMultistepScheduler": _multistep}


def _told(walk: _Walk) -> Told:
    """The network's numbers, as many whatever the steps, so that a program does not depend on these."""
    more = -len(walk.levels) % ROWS
    levels = np.concatenate([walk.levels, walk.levels[-1] + 1 + np.arange(more)])
    return Told(levels.astype(np.float32), np.pad(walk.told, (0, more), mode="edge").astype(np.float32))


def _to_the_end(sigmas: Float[np.ndarray, " N"], told: np.ndarray, start: float) -> _Walk:
    """From sigma to sigma, and at last the estimate."""
    levels = -2 * np.log(sigmas)
    return _Walk(levels, np.append(levels[1:], CLEAN), told, start=float(start))


def _karras(low: float, high: float, steps: int, rho: float = RHO) -> Float[np.ndarray, " N"]:
    """Sigmas equally spaced in their rho-th root (Karras et al. 2022, arXiv 2206.00364, eq. 5), decreasing."""
    return (high ** (1 / rho) + np.linspace(0, 1, steps) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def _geometric(low: float, high: float, steps: int) -> Float[np.ndarray, " N"]:
    """Sigmas equally spaced in their logarithm, decreasing."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps))


def _spread(scheduler: Scheduler, low: float, high: float, steps: int) -> Float[np.ndarray, " N"]:
    """So many sigmas between two, or the scheduler's own ends, as its options space them.

    Raises `UserError` unless the first end is lower.
    """
    own = scheduler.options
    low, high = (value if own.get(name) is None else own[name] for name, value in (
        ("sigma_min", low), ("sigma_max", high)))
    if not low <= high:
        raise UserError(f"{scheduler.name}: sigmas from {high:g} down to {low:g}; permitted: sigma_min < sigma_max")
    if own["use_karras_sigmas"]:
        return _karras(low, high, steps)
    if own["use_beta_sigmas"]:  # quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173)
        from scipy.stats import beta

        return low + (high - low) * beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    return _geometric(low, high, steps)  # exponential; Lu et al. 2022, arXiv 2206.00927 space lambda = -ln sigma so


def _timestep_of(sigmas: Float[np.ndarray, " N"], table: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " N"]:
    """The timestep of each sigma, interpolated in its logarithm."""
    return np.interp(np.log(sigmas), -table / 2, np.arange(len(table)))
