"""`scheduler_config.json` of a released model as one of our samplers, with the levels that it goes through.

The classes of diffusers differ in which timesteps they choose, where they end, and how large the noise is that they
begin with. All of that becomes numbers here (`Trajectory`); the steps themselves are those of `vdm_jax.diffusion`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdm_jax.diffusion.beta_tables import BetaTable, LinearBetaSchedule, ScaledLinearBetaSchedule
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, PNDM, Consistency, DPMSolver, Heun, Sampler, Step
from vdm_jax.diffusion.schedules import EDMSchedule
from vdm_jax.errors import UserError
from vdm_jax.interop.tensor_files import read_json
from vdm_jax.pipelines.denoising import Method, Told

BETAS = {"linear": LinearBetaSchedule, "scaled_linear": ScaledLinearBetaSchedule}
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
ROWS = 1024  # a table of what the network is told has a multiple of so many
RHO = 7.0  # of the Karras sigmas; the classes have no option for it
SMALLEST = np.log(2.0**-24) - np.log1p(-(2.0**-24))  # log-SNR that Euler and DPM-Solver put in the place of zero SNR
CLEAN = 60.0  # log-SNR that stands for an alpha of one
NOTHING = -60.0  # log-SNR where others have an alpha of zero; it is 9e-14 here

_SHARED = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
           "trained_betas": None, "prediction_type": "epsilon", "steps_offset": 0, "timestep_spacing": "leading"}
_THRESHOLDS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIPS = {"clip_sample": False, "clip_sample_range": 1.0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
           "timestep_spacing": "linspace"}
# Class -> its options and what they are where a file does not say.
OPTIONS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {**_SHARED, **_THRESHOLDS, **_CLIPS, "clip_sample": True, "set_alpha_to_one": True,
                      "rescale_betas_zero_snr": False},
    "PNDMScheduler": {**_SHARED, "skip_prk_steps": False, "set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": {
        **_SHARED, **_THRESHOLDS, **_SIGMAS, "solver_order": 2, "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False,
        "use_flow_sigmas": False, "flow_shift": 1.0, "final_sigmas_type": "zero", "lambda_min_clipped": -np.inf,
        "variance_type": None, "rescale_betas_zero_snr": False, "use_dynamic_shifting": False,
        "time_shift_type": "exponential"},
    "EulerDiscreteScheduler": {
        **_SHARED, **_SIGMAS, "interpolation_type": "linear", "sigma_min": None, "sigma_max": None,
        "timestep_type": "discrete", "rescale_betas_zero_snr": False, "final_sigmas_type": "zero"},
    "HeunDiscreteScheduler": {**_SHARED, **_SIGMAS, **_CLIPS, "beta_start": 0.00085, "beta_end": 0.012},
    "LCMScheduler": {**_SHARED, **_THRESHOLDS, **_CLIPS, "beta_start": 0.00085, "beta_end": 0.012,
                     "beta_schedule": "scaled_linear", "original_inference_steps": 50, "set_alpha_to_one": True,
                     "timestep_scaling": 10.0, "rescale_betas_zero_snr": False},
    "EDMEulerScheduler": {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras",
                          "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": RHO,
                          "final_sigmas_type": "zero"},
}
# Options that a class has and of which we have one value.
ONLY = {"trained_betas": None, "clip_sample": False, "thresholding": False, "use_exponential_sigmas": False,
        "use_beta_sigmas": False, "interpolation_type": "linear", "skip_prk_steps": True, "solver_order": 2,
        "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "use_lu_lambdas": False, "use_flow_sigmas": False,
        "use_dynamic_shifting": False, "variance_type": None, "sigma_schedule": "karras"}
CHOICES = {"beta_schedule": tuple(BETAS), "prediction_type": tuple(PREDICTIONS),
           "timestep_spacing": ("leading", "trailing", "linspace"), "timestep_type": ("discrete", "continuous"),
           "final_sigmas_type": ("zero",), "lambda_min_clipped": (-np.inf, "-Infinity", None)}


class Trajectory(NamedTuple):
    """So many steps of a scheduler."""

    method: Method
    start: float  # standard deviation of the z to begin with
    steps: Step  # stacked, of numpy arrays
    told: Told


class _Walk(NamedTuple):
    """The levels of a trajectory."""

    levels: Float[np.ndarray, " n"]  # log-SNR of each step
    following: Float[np.ndarray, " n"]  # log-SNR that it goes to
    told: Float[np.ndarray, " n"]  # what the network is told
    estimate: bool = True  # whether the last step's estimate is the result, and not z where it goes to
    start: float = 1.0


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers, read."""

    name: str  # of its class
    options: Mapping[str, Any]  # all that the class has

    def __post_init__(self):
        if self.name not in OPTIONS:
            raise UserError(f"scheduler {self.name!r} is not supported; permitted: {', '.join(OPTIONS)}")
        elsewhere = {name for options in OPTIONS.values() for name in options}
        for name in self.options:
            # A file may hold options of classes that it was made from, which the class itself does not look at.
            if name not in OPTIONS[self.name] and name not in elsewhere:
                raise UserError(f"option {name!r} of {self.name} is unknown; permitted: "
                                f"{', '.join(OPTIONS[self.name])}")
        own = {**OPTIONS[self.name], **{k: v for k, v in self.options.items() if k in OPTIONS[self.name]}}
        for name, value in own.items():
            permitted = (ONLY[name],) if name in ONLY else CHOICES.get(name, (value,))
            if value not in permitted:
                raise UserError(f"{self.name}: {name}={value!r} is not supported; permitted: "
                                f"{', '.join(map(repr, permitted))}")
        object.__setattr__(self, "options", own)
        self.method  # noqa: B018  # what does not go together raises here

    @property
    def schedule(self) -> BetaTable | EDMSchedule:
        """The noise that the network was trained with."""
        own = self.options
        if self.name == "EDMEulerScheduler":
            return EDMSchedule(sigma_min=own["sigma_min"], sigma_max=own["sigma_max"], rho=own["rho"])
        return BETAS[own["beta_schedule"]](
            steps=own["num_train_timesteps"], beta_start=own["beta_start"], beta_end=own["beta_end"],
            zero_terminal_snr=bool(own.get("rescale_betas_zero_snr")))

    @property
    def method(self) -> Method:
        """Sampler and process. Raises `UserError` for a prediction that is not defined with the schedule."""
        own, prediction = self.options, PREDICTIONS[self.options["prediction_type"]]
        if self.name == "EDMEulerScheduler":
            if prediction != "eps":
                raise UserError(f"{self.name}: prediction_type={own['prediction_type']!r} is not supported; permitted: "
                                "'epsilon'")
            return Method(sampler=DDIM(), process=Process(schedule=self.schedule, prediction="edm",
                                                          sigma_data=own["sigma_data"]))
        samplers: dict[str, Sampler] = {
            "DDIMScheduler": DDIM(), "EulerDiscreteScheduler": DDIM(), "HeunDiscreteScheduler": Heun(along="sigma"),
            "PNDMScheduler": PNDM(extrapolate="v" if prediction == "v" else "eps"), "LCMScheduler": Consistency(),
            "DPMSolverMultistepScheduler": DPMSolver()}
        return Method(sampler=samplers[self.name], process=Process(schedule=self.schedule, prediction=prediction),
                      consistency=own["timestep_scaling"] if self.name == "LCMScheduler" else None)

    def trajectory(self, steps: int) -> Trajectory:
        """The levels of so many steps. Raises `UserError` for numbers of steps that the class cannot take."""
        if steps < 1:
            raise UserError(f"num_inference_steps={steps}; permitted: 1 or more")
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
            table[-1] = NOTHING if self.name in ("DDIMScheduler", "LCMScheduler") else SMALLEST
        return table

    def timesteps(self, steps: int) -> Int[np.ndarray, " steps"]:
        """Whole timesteps, decreasing."""
        spacing = self.options["timestep_spacing"]
        offset = self.options["steps_offset"] if spacing == "leading" else 0
        return TimestepGrid(spacing=spacing, offset=offset).timesteps(self.options["num_train_timesteps"], steps, 1.0)


def read_scheduler(folder: str | os.PathLike) -> Scheduler:
    """The scheduler of a folder with `scheduler_config.json`. Raises `UserError` for what we do not have."""
    path = pathlib.Path(folder) / "scheduler_config.json"
    data = read_json(path)
    try:
        return Scheduler(str(data.get("_class_name")), {k: v for k, v in data.items() if not k.startswith("_")})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _between_timesteps(scheduler: Scheduler, steps: int) -> _Walk:
    """DDIM and PNDM go from timestep n to n - T // steps, whichever comes next in their list."""
    own, table, timesteps = scheduler.options, scheduler.table(), scheduler.timesteps(steps)
    before = timesteps - own["num_train_timesteps"] // steps
    if scheduler.name == "PNDMScheduler" and (before[:-1] != timesteps[1:]).any():
        raise UserError(f"{scheduler.name}: num_inference_steps={steps} with timestep_spacing="
                        f"{own['timestep_spacing']!r} are not steps of equal length; permitted: 'leading', or with "
                        f"'trailing' numbers that divide {own['num_train_timesteps']}")
    if scheduler.name == "PNDMScheduler" and steps < 2:
        raise UserError(f"{scheduler.name}: num_inference_steps={steps}; permitted: 2 or more")
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
    if own["use_karras_sigmas"]:
        low, high = (sigmas[place] if own.get(name) is None else own[name]
                     for name, place in (("sigma_min", -1), ("sigma_max", 0)))
        sigmas = _karras(low, high, steps)
        numbers = _timestep_of(sigmas, table)
    if own.get("timestep_type") == "continuous" and own["prediction_type"] == "v_prediction":
        numbers = np.log(sigmas) / 4
    # Those that have both ends of the table begin with noise as large as sigma, beside which data is nothing.
    start = 1.0 if own["timestep_spacing"] == "leading" else sigmas[0] / np.sqrt(1 + sigmas[0] ** 2)
    return _to_the_end(sigmas, numbers, start)


def _dpm_solver(scheduler: Scheduler, steps: int) -> _Walk:
    """Of one timestep more than it takes, the last is left out."""
    own, table = scheduler.options, scheduler.table()
    total = own["num_train_timesteps"]
    if own["use_karras_sigmas"]:
        sigmas = np.exp(-table / 2)
        sigmas = _karras(sigmas[0], sigmas[-1], steps)
        return _to_the_end(sigmas, np.round(_timestep_of(sigmas, table)), 1.0)
    if steps > total - 1:
        raise UserError(f"num_inference_steps={steps} of {scheduler.name} with {total} timesteps; permitted: up to "
                        f"{total - 1}")
    if own["timestep_spacing"] == "trailing":
        timesteps = scheduler.timesteps(steps)
    elif own["timestep_spacing"] == "leading":
        timesteps = np.arange(steps + 1)[:0:-1] * (total // (steps + 1)) + own["steps_offset"]
    else:
        timesteps = np.linspace(0, total - 1, steps + 1).round().astype(int)[:0:-1]
    return _to_the_end(np.exp(-table[timesteps] / 2), timesteps, 1.0)


def _consistency(scheduler: Scheduler, steps: int) -> _Walk:
    """Timesteps that a latent consistency model was trained on."""
    own, table = scheduler.options, scheduler.table()
    grid = TimestepGrid(spacing="distilled", original=own["original_inference_steps"])
    timesteps = grid.timesteps(own["num_train_timesteps"], steps, 1.0)
    levels = table[timesteps]
    return _Walk(levels, np.append(levels[1:], CLEAN), timesteps)


def _edm(scheduler: Scheduler, steps: int) -> _Walk:
    own = scheduler.options
    sigmas = _karras(own["sigma_min"], own["sigma_max"], steps, own["rho"])
    return _to_the_end(sigmas, np.log(sigmas) / 4, np.sqrt(own["sigma_max"] ** 2 + 1))


_WALKS: dict[str, Callable[[Scheduler, int], _Walk]] = {
    "DDIMScheduler": _between_timesteps, "PNDMScheduler": _between_timesteps, "EulerDiscreteScheduler": _between_sigmas,
    "HeunDiscreteScheduler": _between_sigmas, "DPMSolverMultistepScheduler": _dpm_solver, "LCMScheduler": _consistency,
    "EDMEulerScheduler": _edm}


def _told(walk: _Walk) -> Told:
    """The network's numbers, as many whatever the steps, so that a program does not depend on these."""
    more = -len(walk.levels) % ROWS
    levels = np.concatenate([walk.levels, walk.levels[-1] + 1 + np.arange(more)])
    return Told(levels.astype(np.float32), np.pad(walk.told, (0, more), mode="edge").astype(np.float32))


def _to_the_end(sigmas: Float[np.ndarray, " n"], told: np.ndarray, start: float) -> _Walk:
    """From sigma to sigma, and at last the estimate."""
    levels = -2 * np.log(sigmas)
    return _Walk(levels, np.append(levels[1:], CLEAN), told, start=float(start))


def _karras(low: float, high: float, steps: int, rho: float = RHO) -> Float[np.ndarray, " n"]:
    """Sigmas equally spaced in their rho-th root (Karras et al. 2022, arXiv 2206.00364, eq. 5), decreasing."""
    return (high ** (1 / rho) + np.linspace(0, 1, steps) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def _timestep_of(sigmas: Float[np.ndarray, " n"], table: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " n"]:
    """The timestep of each sigma, interpolated in its logarithm."""
    return np.interp(np.log(sigmas), -table / 2, np.arange(len(table)))
