"""The options of the schedulers of diffusers: their defaults, their types and ranges, and the names of the classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.scheduler_steps import COGVIDEOX, RHO
from vdm_jax.errors import UserError

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
# Option, of which one may be true -> spacing of sigmas that it asks for.
SPREADS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta",
           "use_lu_lambdas": "lu"}
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x",
                                      "flow_prediction": "flow"}
LONGEST = 100_000  # timesteps of a table
INFINITY = float("-inf")

_SHARED = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
           "trained_betas": None, "prediction_type": "epsilon", "steps_offset": 0, "timestep_spacing": "leading"}
_THRESHOLDS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIPS = {"clip_sample": False, "clip_sample_range": 1.0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
           "timestep_spacing": "linspace"}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
_STABLE = {"beta_start": 0.00085, "beta_end": 0.012}
# Both clip nothing, whatever their files say
_COGVIDEOX = {**_SHARED, **_STABLE, "beta_schedule": "scaled_linear", "set_alpha_to_one": True,
              "rescale_betas_zero_snr": False, "snr_shift_scale": 3.0}
# Class -> its options and what they are where a file does not say.
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(COGVIDEOX, _COGVIDEOX),
    "DDIMScheduler": {**_SHARED, **_THRESHOLDS, **_CLIPS, "clip_sample": True, "set_alpha_to_one": True,
                      "rescale_betas_zero_snr": False},
    "DDPMScheduler": {**_SHARED, **_THRESHOLDS, **_CLIPS, "clip_sample": True, "variance_type": "fixed_small",
                      "rescale_betas_zero_snr": False},
    "DEISMultistepScheduler": {**_SHARED, **_THRESHOLDS, **_SIGMAS, **_FLOW, "solver_order": 2,
                               "algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True},
    "DPMSolverMultistepScheduler": {
        **_SHARED, **_THRESHOLDS, **_SIGMAS, **_FLOW, "solver_order": 2, "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False,
        "final_sigmas_type": "zero", "lambda_min_clipped": INFINITY, "variance_type": None,
        "rescale_betas_zero_snr": False},
    "EDMEulerScheduler": {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras",
                          "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": RHO,
                          "final_sigmas_type": "zero"},
    "EulerAncestralDiscreteScheduler": {**_SHARED, "timestep_spacing": "linspace", "rescale_betas_zero_snr": False},
    "EulerDiscreteScheduler": {
        **_SHARED, **_SIGMAS, "interpolation_type": "linear", "sigma_min": None, "sigma_max": None,
        "timestep_type": "discrete", "rescale_betas_zero_snr": False, "final_sigmas_type": "zero"},
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None,
        "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
        "time_shift_type": "exponential", "stochastic_sampling": False},
    "HeunDiscreteScheduler": {**_SHARED, **_SIGMAS, **_CLIPS, **_STABLE},
    "LCMScheduler": {**_SHARED, **_THRESHOLDS, **_CLIPS, **_STABLE, "beta_schedule": "scaled_linear",
                     "original_inference_steps": 50, "set_alpha_to_one": True, "timestep_scaling": 10.0,
                     "rescale_betas_zero_snr": False},
    "LMSDiscreteScheduler": {**_SHARED, **_SIGMAS},
    "PNDMScheduler": {**_SHARED, "skip_prk_steps": False, "set_alpha_to_one": False},
    "UniPCMultistepScheduler": {
        **_SHARED, **_THRESHOLDS, **_SIGMAS, **_FLOW, "solver_order": 2, "predict_x0": True, "solver_type": "bh2",
        "lower_order_final": True, "disable_corrector": [], "solver_p": None, "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False, "sigma_min": None, "sigma_max": None, "shift_terminal": None},
}
# Name for `scheduler=` -> class, and the options that make it what the name says.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}), "ddpm": ("DDPMScheduler", {}), "deis": ("DEISMultistepScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_3m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "edm_euler": ("EDMEulerScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}), "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}), "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}), "unipc": ("UniPCMultistepScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}), "cogvideox_ddim": ("CogVideoXDDIMScheduler", {}),
    "cogvideox_dpm": ("CogVideoXDPMScheduler", {}),
}

_PREDICTED = ("epsilon", "v_prediction", "sample")
# Values that we have; a class of its own stands before the option where classes differ.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "interpolation_type": ("linear",), "skip_prk_steps": (True,), "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,), "invert_sigmas": (False,), "stochastic_sampling": (False,),
    "sigma_schedule": ("karras", "exponential"), "solver_p": (None,), "UniPCMultistepScheduler.shift_terminal": (None,),
    "time_shift_type": ("exponential", "linear"),
    "beta_schedule": BETAS, "prediction_type": _PREDICTED,
    "timestep_spacing": ("leading", "trailing", "linspace"), "timestep_type": ("discrete", "continuous"),
    "final_sigmas_type": ("zero",), "lambda_min_clipped": (INFINITY, "-Infinity", None),
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
    "solver_type": ("midpoint", "heun"), "variance_type": (None,),
    "UniPCMultistepScheduler.use_flow_sigmas": (False, True),
    "UniPCMultistepScheduler.prediction_type": (*_PREDICTED, "flow_prediction"),
    **{f"FlowMatchEulerDiscreteScheduler.{option}": (False,) for option in (
        "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")},
    "FlowMatchEulerDiscreteScheduler.use_dynamic_shifting": (False, True),
    "FlowMatchEulerDiscreteScheduler.time_shift_type": ("exponential",),
    "FlowMatchEulerDiscreteScheduler.num_train_timesteps": (1000,),
    **{f"{name}.beta_schedule": ("scaled_linear",) for name in COGVIDEOX},
    **{f"{name}.trained_betas": (None,) for name in COGVIDEOX},
    "CogVideoXDPMScheduler.set_alpha_to_one": (True,),
    "DPMSolverMultistepScheduler.final_sigmas_type": ("zero", "sigma_min"),
    "UniPCMultistepScheduler.final_sigmas_type": ("zero", "sigma_min"),
    "UniPCMultistepScheduler.solver_type": ("bh1", "bh2"), "DEISMultistepScheduler.solver_type": ("logrho",),
    "DEISMultistepScheduler.algorithm_type": ("deis",), "EDMEulerScheduler.prediction_type": ("epsilon",),
    "EulerAncestralDiscreteScheduler.prediction_type": ("epsilon", "v_prediction"),
    "DDPMScheduler.variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
}
# What a class makes of the solvers of others, as files hold them that were made from another class.
_ALIASES: dict[str, dict[str, str]] = {
    "UniPCMultistepScheduler.solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2"),
    "DPMSolverMultistepScheduler.solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
    "DEISMultistepScheduler.solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
    "DPMSolverMultistepScheduler.algorithm_type": {"deis": "dpmsolver++"},
    "DEISMultistepScheduler.algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
}


def _whole(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    return lambda x: type(x) is int and low <= x <= high, f"a whole number from {low} to {high}"


def _above(low: float, high: float = math.inf) -> tuple[Callable[[Any], bool], str]:
    text = f"a number above {low:g}" + ("" if high == math.inf else f" and up to {high:g}")
    return lambda x: type(x) in (int, float) and math.isfinite(x) and low < x <= high, text


def _or_none(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda x: x is None or rule[0](x), f"{rule[1]}, or null"


_TRUTH = (lambda x: type(x) is bool), "true or false"
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_train_timesteps": _whole(2, LONGEST), "steps_offset": _whole(0, LONGEST), "solver_order": _whole(1, 3),
    "original_inference_steps": _whole(1, LONGEST), "beta_start": _above(0), "beta_end": _above(0),
    "dynamic_thresholding_ratio": _above(0, 1), "sample_max_value": _above(0), "clip_sample_range": _above(0),
    "sigma_min": _or_none(_above(0)), "sigma_max": _or_none(_above(0)), "sigma_data": _above(0), "rho": _above(0),
    "timestep_scaling": _above(0), "snr_shift_scale": _above(0, 1000), "flow_shift": _above(0, 1000),
    "shift": _above(0, 1000), "base_shift": _above(-40, 40), "max_shift": _above(-40, 40),
    "base_image_seq_len": _whole(1, 10**9), "max_image_seq_len": _whole(1, 10**9),
    "FlowMatchEulerDiscreteScheduler.shift_terminal": _or_none(_above(0, 1 - 1e-6)),
    "EDMEulerScheduler.sigma_min": _above(0), "EDMEulerScheduler.sigma_max": _above(0),
    "trained_betas": ((lambda x: x is None or isinstance(x, list) and len(x) > 1 and all(
        type(beta) is float and 0 < beta < 1 for beta in x)), "null, or a list of numbers above 0 and below 1"),
    "disable_corrector": ((lambda x: isinstance(x, list) and all(type(i) is int and i >= 0 for i in x)),
                          "a list of numbers of steps, from 0"),
}


def checked(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a class, by what a file says.

    Raises `UserError` for an unknown class or option, a value of a wrong type or range, and values that do not go
    together.
    """
    if name not in OPTIONS:
        raise UserError(f"scheduler {name!r} is not supported; permitted: {', '.join(OPTIONS)}")
    elsewhere = {option for options in OPTIONS.values() for option in options}
    for option in given:
        # A file may hold options of classes that it was made from, which the class itself does not look at.
        if option not in OPTIONS[name] and option not in elsewhere:
            raise UserError(f"option {option!r} of {name} is unknown; permitted: {', '.join(OPTIONS[name])}")
    own = {**OPTIONS[name], **{k: v for k, v in given.items() if k in OPTIONS[name]}}
    for option, value in own.items():
        specific = f"{name}.{option}"
        if isinstance(value, str):
            own[option] = value = _ALIASES.get(specific, {}).get(value, value)
        choices = _CHOICES.get(specific, _CHOICES.get(option))
        if choices is not None:
            fits = any(type(value) is type(choice) and value == choice for choice in choices)
            text = ", ".join(map(repr, choices))
        else:
            rule, text = _RULES.get(specific, _RULES.get(option, _TRUTH))
            fits = rule(value)
        if not fits:
            raise UserError(f"{name}: {option}={value!r} is not supported; permitted: {text}")
    _check_together(name, own)
    return own


def _check_together(name: str, own: Mapping[str, Any]) -> None:
    low, high = own.get("sigma_min"), own.get("sigma_max")
    if low is not None and high is not None and not low < high:
        raise UserError(f"{name}: sigma_min={low!r} with sigma_max={high!r}; permitted: sigma_min < sigma_max")
    if "beta_start" in own and not own["beta_start"] <= own["beta_end"] < 1:
        raise UserError(f"{name}: beta_start={own['beta_start']!r} with beta_end={own['beta_end']!r}; permitted: "
                        "beta_start <= beta_end < 1")
    if own.get("use_flow_sigmas", False) != (own.get("prediction_type") == "flow_prediction"):
        raise UserError(f"{name}: prediction_type={own['prediction_type']!r} with use_flow_sigmas="
                        f"{own['use_flow_sigmas']!r}; permitted: 'flow_prediction' exactly with true")
    if own.get("use_flow_sigmas") and (any(own[option] for option in SPREADS if option in own)
                                       or own["final_sigmas_type"] != "zero"):
        raise UserError(f"{name}: use_flow_sigmas=true with other sigmas, or final_sigmas_type="
                        f"{own['final_sigmas_type']!r}; permitted: 'zero', and no other sigmas")
    if own.get("base_image_seq_len", 0) >= own.get("max_image_seq_len", 1):
        raise UserError(f"{name}: base_image_seq_len={own['base_image_seq_len']!r} with max_image_seq_len="
                        f"{own['max_image_seq_len']!r}; permitted: the first below the second")
    spreads = [option for option in SPREADS if own.get(option)]
    if len(spreads) > 1:
        raise UserError(f"{name}: {' and '.join(spreads)} are true; permitted: one of them")
    betas = own.get("trained_betas")
    if betas is not None and len(betas) != own["num_train_timesteps"]:
        raise UserError(f"{name}: trained_betas has {len(betas)} numbers with num_train_timesteps="
                        f"{own['num_train_timesteps']}; permitted: as many")
    for option in ("steps_offset", "original_inference_steps"):
        if own.get(option, 0) > own["num_train_timesteps"]:
            raise UserError(f"{name}: {option}={own[option]!r} with num_train_timesteps={own['num_train_timesteps']}; "
                            "permitted: up to it")
    if name == "DPMSolverMultistepScheduler" and not own["algorithm_type"].endswith("++"):
        if own["final_sigmas_type"] == "zero":
            raise UserError(f"{name}: algorithm_type={own['algorithm_type']!r} with final_sigmas_type='zero'; "
                            "permitted: final_sigmas_type='sigma_min'")
        if own["algorithm_type"] == "sde-dpmsolver" and own["solver_order"] == 3:
            raise UserError(f"{name}: solver_order=3 with algorithm_type='sde-dpmsolver'; permitted: 1, 2")


def class_named(name: Any) -> tuple[str, dict[str, Any]]:
    """The class of a short name or of itself, and the options that the name stands for. Raises `UserError`."""
    if isinstance(name, str) and name in OPTIONS:
        return name, {}
    if not isinstance(name, str) or name not in NAMES:
        raise UserError(f"scheduler={name!r}; permitted: {', '.join(NAMES)}, or a class: {', '.join(OPTIONS)}")
    return NAMES[name]


def taken_over(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What another class of scheduler takes from the options that a file states: those that it has too."""
    return {option: value for option, value in given.items() if option in OPTIONS[name]}
