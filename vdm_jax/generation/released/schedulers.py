"""`scheduler_config.json` of a released model as a process, a sampler and the noise levels that it steps through.

The options of each class are in `scheduler_options.py`; the levels are those of `diffusion/scheduler_steps.py`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from vdm_jax.diffusion.beta_tables import (
    BetaTable,
    LinearBetaSchedule,
    ListedBetaSchedule,
    ScaledLinearBetaSchedule,
    ShiftedBetaSchedule,
    SquaredCosineBetaSchedule,
)
from vdm_jax.diffusion.flow_sigmas import DynamicShift, FlowSigmas
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import (
    DDIM,
    DDPM,
    DEIS,
    LMS,
    PNDM,
    Consistency,
    DPMSolver,
    Heun,
    Sampler,
    UniPC,
)
from vdm_jax.diffusion.scheduler_steps import Discretisation, SchedulerSteps
from vdm_jax.diffusion.schedules import EDMSchedule, FlowSchedule
from vdm_jax.diffusion.thresholds import Threshold
from vdm_jax.errors import UserError
from vdm_jax.generation.released.scheduler_options import PREDICTIONS, SPREADS, checked, class_named, taken_over
from vdm_jax.stages.options import Sampling
from vdm_jax.weights.tensor_files import read_json


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
        self.sampling(), self.process  # noqa: B018  # what does not go together raises here

    @property
    def schedule(self) -> BetaTable | EDMSchedule | FlowSchedule:
        """The noise that the network was trained with."""
        own = self.options
        if self.flow is not None:
            return FlowSchedule(shift=self.flow.shift)
        if self.name == "EDMEulerScheduler":
            return EDMSchedule(sigma_min=own["sigma_min"], sigma_max=own["sigma_max"], rho=own["rho"])
        shared = {"steps": own["num_train_timesteps"], "zero_terminal_snr": bool(own.get("rescale_betas_zero_snr"))}
        if own["trained_betas"] is not None:
            return ListedBetaSchedule(listed=tuple(own["trained_betas"]), **shared)
        if "snr_shift_scale" in own:
            return ShiftedBetaSchedule(beta_start=own["beta_start"], beta_end=own["beta_end"],
                                       snr_shift=float(own["snr_shift_scale"]), **shared)
        if own["beta_schedule"] == "squaredcos_cap_v2":
            return SquaredCosineBetaSchedule(**shared)
        kind = LinearBetaSchedule if own["beta_schedule"] == "linear" else ScaledLinearBetaSchedule
        return kind(beta_start=own["beta_start"], beta_end=own["beta_end"], **shared)

    @property
    def flow(self) -> FlowSigmas | None:
        """The sigmas of flow matching, where it has those. The pipelines of dynamic shifts give their own grid."""
        own = self.options
        if self.name == "FlowMatchEulerDiscreteScheduler":
            if not own["use_dynamic_shifting"]:
                return FlowSigmas(grid="euler", shift=float(own["shift"]), terminal=own["shift_terminal"])
            dynamic = DynamicShift(tokens=(own["base_image_seq_len"], own["max_image_seq_len"]),
                                   log_shifts=(own["base_shift"], own["max_shift"]))
            return FlowSigmas(dynamic=dynamic, terminal=own["shift_terminal"])
        return FlowSigmas(grid="unipc", shift=float(own["flow_shift"])) if own.get("use_flow_sigmas") else None

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
    def process(self) -> Process:
        """The noise and what the network predicts. Raises `UserError` for a prediction that is not defined with the
        schedule."""
        own = self.options
        if self.flow is not None:
            return Process(schedule=self.schedule, prediction="flow")
        if self.name == "EDMEulerScheduler":
            return Process(schedule=self.schedule, prediction="edm", sigma_data=own["sigma_data"])
        return Process(schedule=self.schedule, prediction=PREDICTIONS[own["prediction_type"]])

    @property
    def steps(self) -> SchedulerSteps:
        """The noise levels that it steps through."""
        own, spaced = self.options, None
        if self.flow is not None:
            return SchedulerSteps(scheduler=self.name, flow=self.flow)
        if self.name == "EDMEulerScheduler":
            spaced = own["sigma_schedule"]
        else:
            spaced = next((name for option, name in SPREADS.items() if own.get(option)), None)
        continuous = own.get("timestep_type") == "continuous" and own["prediction_type"] == "v_prediction"
        same = {name: own[name] for name in ("timestep_spacing", "steps_offset", "rho", "set_alpha_to_one",
                                             "original_inference_steps") if name in own}
        return SchedulerSteps(
            scheduler=self.name, sigmas=spaced, sigma_min=own.get("sigma_min"), sigma_max=own.get("sigma_max"),
            final_sigma=own.get("final_sigmas_type", "sigma_min"),
            noise_at_end=own.get("variance_type") == "fixed_large",
            log_sigma_embedding=continuous or self.name == "EDMEulerScheduler", **same)

    @property
    def timesteps(self) -> BetaTable | FlowSchedule | None:
        """The table whose timestep, or the flow whose 1000 sigma the network embeds; None: ln(sigma / alpha) / 4."""
        return None if self.steps.log_sigma_embedding else self.schedule

    def sampling(self, **more: Any) -> Sampling:
        """How a stage is sampled with it; `more` are other fields of `Sampling`."""
        return Sampling(
            sampler=DDIM() if self.name == "EDMEulerScheduler" else _SAMPLERS[self.name](self), scheduler=self.steps,
            consistency=float(self.options["timestep_scaling"]) if self.name == "LCMScheduler" else None,
            threshold=None if self.name == "DDIMScheduler" else self.threshold,  # DDIM bounds x_hat alone
            **more)

    def discretise(self, steps: int) -> Discretisation:
        """The levels of so many steps. Raises `UserError` for numbers of steps that the class cannot take."""
        return self.steps.discretise(self.schedule, steps)


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
    "CogVideoXDDIMScheduler": lambda s: DDIM(),
    "CogVideoXDPMScheduler": lambda s: DPMSolver(sde=True, lower_order_final=False),
    "DDIMScheduler": lambda s: DDIM(threshold=s.threshold),
    "DDPMScheduler": lambda s: DDPM(gamma=1.0 if s.options["variance_type"] == "fixed_large" else 0.0),
    "DEISMultistepScheduler": lambda s: DEIS(order=s.options["solver_order"],
                                             lower_order_final=s.options["lower_order_final"]),
    "DPMSolverMultistepScheduler": _dpm,
    "EulerAncestralDiscreteScheduler": lambda s: DDIM(eta=1.0),
    "EulerDiscreteScheduler": lambda s: DDIM(),
    "FlowMatchEulerDiscreteScheduler": lambda s: DDIM(),
    "HeunDiscreteScheduler": lambda s: Heun(along="sigma"),
    "LCMScheduler": lambda s: Consistency(),
    "LMSDiscreteScheduler": lambda s: LMS(),
    "PNDMScheduler": lambda s: PNDM(extrapolate="v" if s.options["prediction_type"] == "v_prediction" else "eps"),
    "UniPCMultistepScheduler": _unipc,
}
