"""Schedulers of released models: which levels they take, what they refuse, and, in full, every step of diffusers'."""

from __future__ import annotations

import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.beta_tables import BetaTable
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.sampling import Walk
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.errors import UserError
from vdm_jax.generation import one_stage
from vdm_jax.generation.released.scheduler_options import NAMES, OPTIONS
from vdm_jax.generation.released.schedulers import Scheduler, read_scheduler

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# The file of Stable Video Diffusion, with options of the class that it was made from.
VIDEO = {**STABLE, "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000,
         "prediction_type": "v_prediction", "set_alpha_to_one": False, "sigma_max": 700.0, "sigma_min": 0.002,
         "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "timestep_type": "continuous",
         "trained_betas": None, "use_karras_sigmas": True}
SHAPE = (2, 1, 2, 2, 1)
EULER, DPM, UNIPC = "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
DDPM, DEIS, LMS = "DDPMScheduler", "DEISMultistepScheduler", "LMSDiscreteScheduler"
ANCESTRAL = "EulerAncestralDiscreteScheduler"
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
EXPONENTIAL = {"use_exponential_sigmas": True}
SQUARED = {"beta_schedule": "squaredcos_cap_v2"}
LISTED = {"trained_betas": np.linspace(0.001, 0.03, 500).tolist(), "num_train_timesteps": 500}
COGVIDEOX = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, **TRAILING}
BOUNDED = {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.4}


def test_the_levels_of_stable_video_diffusion():
    found = Scheduler("EulerDiscreteScheduler", VIDEO).discretise(5)
    sigmas = (700 ** (1 / 7) + np.linspace(0, 1, 5) * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7
    np.testing.assert_allclose(found.steps.level, -2 * np.log(sigmas), rtol=1e-6)
    np.testing.assert_allclose(found.timesteps.numbers[:5], np.log(sigmas) / 4, rtol=1e-6)
    assert found.initial_std == 1 and found.steps.last.tolist() == [False] * 4 + [True]


def test_where_a_scheduler_ends_and_how_it_begins():
    table = ScaledLinearBetaSchedule().table()
    options = {**STABLE, "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
    found = Scheduler("DDIMScheduler", options).discretise(4)
    np.testing.assert_allclose(found.steps.next, table[[501, 251, 1, 0]], rtol=1e-6)
    assert not found.steps.last.any()  # the last step goes to timestep 0
    found = Scheduler("DDIMScheduler", {**options, "set_alpha_to_one": True}).discretise(4)
    assert found.steps.last.tolist() == [False, False, False, True]
    trailing = Scheduler("EulerDiscreteScheduler", {**STABLE, "timestep_spacing": "trailing"}).discretise(4)
    np.testing.assert_allclose(trailing.initial_std, np.sqrt(1 / (1 + np.exp(table[-1]))), rtol=1e-6)


@pytest.mark.parametrize("name, options, steps, message", [
    ("KDPM2DiscreteScheduler", {}, 4, ("scheduler_options.checked", "'KDPM2DiscreteScheduler'")),
    ("DDIMScheduler", {"clip_sample": False, "twist": 1}, 4, ("scheduler_options.checked", "'twist'")),
    ("DDIMScheduler", {"clip_sample": 1}, 4, ("DDIMScheduler", "clip_sample=1")),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True, "use_karras_sigmas": True}, 4,
     ("scheduler_options._check_together", "use_karras_sigmas", "use_beta_sigmas")),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, 4, ("EulerDiscreteScheduler", "'linear'")),
    ("EulerDiscreteScheduler", {"beta_schedule": "sigmoid"}, 4,
     ("EulerDiscreteScheduler", "'linear'", "'scaled_linear'")),
    ("DDIMScheduler", {"trained_betas": [0.1, 1.5]}, 4, ("DDIMScheduler",)),
    ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, 2,
     ("scheduler_options._check_together", "trained_betas", "2", "num_train_timesteps=1000")),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, 4,
     ("DPMSolverMultistepScheduler", "final_sigmas_type='sigma_min'")),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type":
                                     "sigma_min"}, 4, ("DPMSolverMultistepScheduler", "solver_order=3")),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpm"}, 4, ("DPMSolverMultistepScheduler", "'dpmsolver++'")),
    ("DPMSolverMultistepScheduler", {}, 1000, ("num_inference_steps", "=1000", "999")),
    ("UniPCMultistepScheduler", {"solver_order": 4}, 4, ("UniPCMultistepScheduler", "solver_order=4")),
    ("DDPMScheduler", {"variance_type": "learned_range"}, 4, ("DDPMScheduler", "variance_type='learned_range'")),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, 4,
     ("EulerAncestralDiscreteScheduler", "'epsilon'", "'v_prediction'")),
    ("EulerDiscreteScheduler", {"sigma_min": 10.0, "sigma_max": 1.0}, 4,
     ("EulerDiscreteScheduler", "sigma_min=10.0", "sigma_max=1.0")),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_min": 1000.0}, 4,
     ("scheduler_steps._spaced", "sigma_min", "sigma_max")),
    ("EulerDiscreteScheduler", {}, 10**12, ("num_inference_steps", "=1000000000000")),
    ("DPMSolverMultistepScheduler", {"rescale_betas_zero_snr": True}, 4, ("Process.prediction", "='eps'")),
    ("PNDMScheduler", {}, 4, ("PNDMScheduler", "skip_prk_steps=False")),
    ("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": "linspace"}, 4, ("PNDMScheduler",)),
    ("LCMScheduler", {}, 51, ("steps", "50")),
    ("EulerDiscreteScheduler", {}, 0, ("num_inference_steps", "=0")),
    ("CogVideoXDDIMScheduler", {"beta_schedule": "linear"}, 3, ("CogVideoXDDIMScheduler", "'scaled_linear'")),
    ("CogVideoXDPMScheduler", {"snr_shift_scale": 0}, 3, ("CogVideoXDPMScheduler", "snr_shift_scale=0")),
    ("CogVideoXDPMScheduler", {"set_alpha_to_one": False}, 3, ("CogVideoXDPMScheduler", "set_alpha_to_one=False")),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, 3, ("EDMEulerScheduler", "'epsilon'")),
])
def test_refusals(name, options, steps, message):
    with refused(*message):
        Scheduler(name, options).discretise(steps)


def test_betas_of_other_tables():
    """The product of 1 - beta, against its definitions."""
    squared = Scheduler("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50})
    squared = squared.schedule.table()
    power = np.cos((np.arange(51) / 50 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(1 / (1 + np.exp(-squared[:-1])), power[1:-1] / power[0], rtol=1e-9)
    np.testing.assert_allclose(1 / (1 + np.exp(-squared[-1])), power[-2] / power[0] * 0.001, rtol=1e-9)
    betas = np.random.default_rng(0).uniform(0.01, 0.2, 20)
    listed = Scheduler("DDIMScheduler", {"trained_betas": betas.tolist(), "num_train_timesteps": 20})
    np.testing.assert_allclose(1 / (1 + np.exp(-listed.schedule.table())), np.cumprod(1 - betas), rtol=1e-9)
    # What is compiled is found by them.
    assert len({listed.sampling(), listed.sampling()}) == len({listed.process, listed.process}) == 1


def test_sigmas_of_other_spacings():
    table = ScaledLinearBetaSchedule().table()
    ends = np.exp(-table[[-1, 0]] / 2)
    for name, option in ((EULER, "use_exponential_sigmas"), (DPM, "use_lu_lambdas"), (UNIPC, "use_exponential_sigmas")):
        level = Scheduler(name, {**STABLE, option: True}).discretise(5).steps.level
        np.testing.assert_allclose(np.diff(level), np.log(ends[0] / ends[1]) * 2 / 4, rtol=1e-4)
    level = Scheduler(EULER, {**STABLE, "use_beta_sigmas": True}).discretise(3).steps.level
    np.testing.assert_allclose(np.exp(-level / 2), [ends[0], ends.mean(), ends[1]], rtol=1e-5)  # a symmetric density


def test_a_bound_of_frames_is_not_one_of_clips():
    options = {**BOUNDED, "clip_sample": False}
    for name in ("DDIMScheduler", DPM):
        found = [Scheduler(name, options, threshold_per=per).sampling() for per in ("clip", "frame")]
        assert [(sampling.threshold or sampling.sampler.threshold).per for sampling in found] == ["clip", "frame"]


def test_the_file_is_named(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler", "clip_sample": "yes"}))
    with refused("DDIMScheduler", "scheduler_config.json", "clip_sample='yes'"):
        read_scheduler(tmp_path)


def test_trailing_steps_of_every_number():
    """As published: descending from the last, rounded, minus 1. 48 of 1,000 steps tell a rounding from another."""
    for total in (1000, 500, 77):
        for steps in range(1, total + 1):
            found = TimestepGrid(spacing="trailing").timesteps(total, steps, 1.0)
            wanted = np.round(np.arange(total, 0, -total / steps)).astype(int) - 1
            assert found.tolist() == wanted.tolist()
    assert 936 in TimestepGrid(spacing="trailing").timesteps(1000, 48, 1.0)


@pytest.mark.full
def test_trailing_steps_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    for total in (1000, 777):
        peer = diffusers.DDIMScheduler(timestep_spacing="trailing", num_train_timesteps=total)
        for steps in range(1, total + 1):
            peer.set_timesteps(steps)
            assert TimestepGrid(spacing="trailing").timesteps(total, steps, 1.0).tolist() == peer.timesteps.tolist()


def test_an_offset_beyond_the_last_timestep_stays_in_the_table():
    table = ScaledLinearBetaSchedule().table()
    for name in (DPM, UNIPC, DEIS):
        found = Scheduler(name, {**STABLE, **LEADING}).discretise(999)
        np.testing.assert_allclose(found.steps.level[:3], table[[999, 999, 998]], rtol=1e-6)


WRONG = (None, True, -1, 0, 1.5, 10**12, "1", "x", [], [1, "a"], {}, float("nan"), float("inf"), -0.5)


@pytest.mark.parametrize("name", OPTIONS)
def test_any_value_of_any_option_is_taken_or_refused(name, tmp_path):
    """Whatever JSON can hold: levels that are finite and end, or a `UserError`."""
    base = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    for option in OPTIONS[name]:
        for value in WRONG:
            data = {"_class_name": name, **base, option: value}
            (tmp_path / "scheduler_config.json").write_text(json.dumps(data))
            try:
                found = read_scheduler(tmp_path).discretise(3)
            except UserError:
                continue
            assert np.isfinite(found.steps.level).all() and (np.diff(found.steps.level) >= 0).all(), (option, value)


def test_a_scheduler_by_name_takes_what_the_file_states(tmp_path):
    data = {**STABLE, "_class_name": "KDPM2DiscreteScheduler", "prediction_type": "v_prediction", "twist": 3,
            "solver_type": "midpoint", "skip_prk_steps": False}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(data))
    for name, (kind, options) in NAMES.items():
        if name in ("edm_euler", "flow_euler"):
            continue  # they have one kind of prediction
        found = read_scheduler(tmp_path, name)
        assert found.name == kind and found.options["beta_end"] == 0.012
        assert found.options["prediction_type"] == "v_prediction"
        assert all(found.options[key] == value for key, value in options.items())
    assert read_scheduler(tmp_path, "UniPCMultistepScheduler").options["solver_type"] == "bh2"
    with refused("scheduler", "='euler2'"):
        read_scheduler(tmp_path, "euler2")


class Embedding(nn.Module):
    """`network`, as a stage's network: it embeds the timestep, or ln(sigma) / 4."""

    table: BetaTable | None

    def __call__(self, z, logsnr, conditioning):
        return network(z, -logsnr / 8 if self.table is None else self.table.timestep(logsnr))


def ours(scheduler, steps, z, keys, monkeypatch):
    """z after every step, and the result, by the denoiser and the steps of a stage."""
    stage = SimpleNamespace(process=scheduler.process, shape=z.shape[1:], takes_weight=False,
                            network=SimpleNamespace(timesteps=scheduler.timesteps, prompted=False))
    monkeypatch.setattr(one_stage, "network_module", lambda network: Embedding(network.timesteps))
    sampling = scheduler.sampling(steps=steps)
    found, embedded = one_stage.released_steps(stage, sampling)
    denoise = one_stage.stage_denoiser(stage, {}, Conditioning(), sampling, found.steps.level, embedded=embedded)

    @jax.jit
    def run(z):
        walk = Walk(sampling.sampler, stage.process, z.shape, steps)
        carry = walk.begin(keys, jnp.asarray(found.steps.level[0]), noise=z, std=found.initial_std)
        return jax.lax.scan(lambda carry, step: (new := walk.advance(denoise, keys, carry, step)[0], new[0]), carry,
                            jax.tree.map(jnp.asarray, found.steps))[1]

    return np.asarray(run(z.astype(np.float32)))


class Double:
    """A module of theirs whose float32 is float64, for a reference without rounding."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, "float64" if name == "float32" else name)


def theirs(monkeypatch, name, options, steps, network, z, keys):
    """(x after every step, sigma / alpha there); what the network embeds is checked."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    made = getattr(diffusers, name)
    module = __import__(made.__module__, fromlist=["x"])
    monkeypatch.setattr(module, "torch", Double(torch))
    monkeypatch.setattr(module, "np", Double(np), raising=False)
    masked_video = {k: v for k, v in options.items() if k in OPTIONS[name]}
    scheduler = made(**masked_video)
    scheduler.set_timesteps(steps)
    x, found, times, before = torch.from_numpy(z) * scheduler.init_noise_sigma, [], [], None
    if hasattr(module, "randn_tensor"):
        def draw(shape, **_):
            return torch.from_numpy(np.array(noise_from_keys(keys, len(times), shape), np.float64))

        monkeypatch.setattr(module, "randn_tensor", draw)
    for timestep in scheduler.timesteps:
        times.append(float(timestep))
        raw = torch.from_numpy(network(scheduler.scale_model_input(x, timestep).numpy(), float(timestep), np))
        if name == "CogVideoXDPMScheduler":
            x, before = scheduler.step(raw, before, timestep, scheduler.timesteps[len(times) - 2] if len(times) > 1 else
                                       None, x)
        else:
            x = scheduler.step(raw, timestep, x).prev_sample
        found.append(x.numpy())
    return found, times, scheduler


def network(z, times, xp=jnp):
    """Something that depends on both and is no noise predictor in particular."""
    return 0.7 * xp.tanh(z) + 0.1 * z + 0.05 * xp.sin(times / 97.0 if xp is np else (times / 97.0)[:, None, None, None,
                                                                                           None])


DDIM = {"clip_sample": False}
# Class, options, steps.
PEERS = {
    "ddim leading": ("DDIMScheduler", {**DDIM, "steps_offset": 1, "set_alpha_to_one": False}, 7),
    "ddim to one": ("DDIMScheduler", DDIM, 8),
    "ddim trailing": ("DDIMScheduler", {**DDIM, "timestep_spacing": "trailing"}, 7),
    "ddim linspace": ("DDIMScheduler", {**DDIM, "timestep_spacing": "linspace"}, 6),
    "cogvideox ddim": ("CogVideoXDDIMScheduler", COGVIDEOX, 7),
    "cogvideox ddim leading": ("CogVideoXDDIMScheduler", LEADING, 8),
    "cogvideox dpm": ("CogVideoXDPMScheduler", COGVIDEOX, 8),
    "cogvideox dpm to the first timestep": ("CogVideoXDPMScheduler", {**COGVIDEOX, "snr_shift_scale": 1.0}, 6),
    "cogvideox dpm leading": ("CogVideoXDPMScheduler", {"prediction_type": "epsilon", **LEADING}, 8),
    "ddim linear betas": ("DDIMScheduler", {**DDIM, "beta_schedule": "linear"}, 6),
    "ddim zero snr": ("DDIMScheduler", {**DDIM, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 8),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, 9),
    "pndm trailing": ("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": "trailing"}, 8),
    "pndm to one": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, 8),
    "dpm linspace": (DPM, {}, 8),
    "dpm leading": (DPM, {"timestep_spacing": "leading", "steps_offset": 1}, 20),
    "dpm trailing": (DPM, {"timestep_spacing": "trailing", "euler_at_final": True}, 8),
    "dpm karras": (DPM, {"use_karras_sigmas": True}, 9),
    "dpm zero snr": (DPM, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 8),
    "euler linspace": (EULER, {}, 8),
    "euler leading": (EULER, {"timestep_spacing": "leading", "steps_offset": 1}, 7),
    "euler trailing": (EULER, {"timestep_spacing": "trailing"}, 7),
    "euler karras": (EULER, {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}, 7),
    "euler karras of its own range": (EULER, {"use_karras_sigmas": True, "timestep_spacing": "leading"}, 7),
    "euler zero snr": (EULER, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 8),
    "video": (EULER, VIDEO, 9),
    "heun": ("HeunDiscreteScheduler", {}, 7),
    "heun leading": ("HeunDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 7),
    "heun karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 7),
    "lcm": ("LCMScheduler", {}, 4),
    "lcm of twenty": ("LCMScheduler", {"original_inference_steps": 20}, 3),
    "edm": ("EDMEulerScheduler", {}, 8),
    "edm exponential": ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, 8),
    "ddim squared cosine": ("DDIMScheduler", {**DDIM, **SQUARED}, 8),
    "dpm squared cosine": (DPM, {**SQUARED, **KARRAS}, 8),
    "unipc squared cosine": (UNIPC, SQUARED, 8),
    "euler squared cosine": (EULER, SQUARED, 7),
    "ddim listed": ("DDIMScheduler", {**DDIM, **LISTED}, 7),
    "deis listed": (DEIS, LISTED, 7),
    "dpm lu": (DPM, {"use_lu_lambdas": True}, 8),
    "dpm exponential": (DPM, EXPONENTIAL, 8),
    "dpm beta": (DPM, {"use_beta_sigmas": True}, 8),
    "unipc exponential": (UNIPC, {**EXPONENTIAL, "sigma_min": 0.05, "sigma_max": 12.0}, 8),
    "unipc beta": (UNIPC, {"use_beta_sigmas": True, "final_sigmas_type": "sigma_min"}, 8),
    "deis exponential": (DEIS, EXPONENTIAL, 8),
    "euler exponential": (EULER, {**EXPONENTIAL, **LEADING}, 8),
    "euler beta": (EULER, {"use_beta_sigmas": True}, 8),
    "heun exponential": ("HeunDiscreteScheduler", EXPONENTIAL, 7),
    "lms beta": (LMS, {"use_beta_sigmas": True}, 8),
    "pndm of one step": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, 1),
    "ddim clipped": ("DDIMScheduler", {"clip_sample_range": 0.8}, 6),
    "ddim bounded": ("DDIMScheduler", BOUNDED, 6),
    "heun clipped": ("HeunDiscreteScheduler", {"clip_sample": True, "clip_sample_range": 0.8}, 6),
    "lcm bounded": ("LCMScheduler", BOUNDED, 4),
    "dpm bounded": (DPM, BOUNDED, 8),
    "dpm 1": (DPM, {"solver_order": 1}, 6),
    "dpm 3": (DPM, {"solver_order": 3}, 9),
    "dpm 3 of many": (DPM, {"solver_order": 3}, 18),
    "dpm 3 without lower order": (DPM, {"solver_order": 3, "lower_order_final": False, **KARRAS}, 9),
    "dpm heun": (DPM, {"solver_type": "heun"}, 8),
    "dpm sigma min": (DPM, {"final_sigmas_type": "sigma_min", "solver_order": 3, **TRAILING}, 8),
    "dpm euler at final": (DPM, {"final_sigmas_type": "sigma_min", "euler_at_final": True}, 16),
    "dpm of noise": (DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, 8),
    "dpm of noise 3": (DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3,
                             "solver_type": "heun"}, 16),
    "dpm sde": (DPM, SDE, 8),
    "dpm sde karras": (DPM, {**SDE, **KARRAS}, 16),
    "dpm sde heun": (DPM, {**SDE, "solver_type": "heun"}, 8),
    "dpm sde 3": (DPM, {**SDE, "solver_order": 3}, 9),
    "dpm sde of noise": (DPM, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}, 8),
    "unipc": (UNIPC, {}, 8),
    "unipc 1": (UNIPC, {"solver_order": 1}, 5),
    "unipc 3": (UNIPC, {"solver_order": 3}, 9),
    "unipc 3 leading": (UNIPC, {"solver_order": 3, **LEADING}, 20),
    "unipc bh1": (UNIPC, {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min", **TRAILING}, 8),
    "unipc karras": (UNIPC, {**KARRAS, "sigma_min": 0.05, "sigma_max": 12.0}, 8),
    "unipc sigma min": (UNIPC, {**KARRAS, "final_sigmas_type": "sigma_min"}, 8),
    "unipc of noise": (UNIPC, {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_order": 3}, 8),
    "unipc uncorrected": (UNIPC, {"disable_corrector": [0, 3]}, 8),
    "unipc bounded": (UNIPC, BOUNDED, 8),
    "unipc zero snr": (UNIPC, {"rescale_betas_zero_snr": True, **TRAILING}, 8),
    "deis": (DEIS, {}, 8),
    "deis 3": (DEIS, {"solver_order": 3}, 16),
    "deis karras": (DEIS, {"solver_order": 3, **KARRAS}, 9),
    "deis leading": (DEIS, {**LEADING, **BOUNDED}, 8),
    "lms": (LMS, {}, 9),
    "lms leading": (LMS, LEADING, 20),
    "lms trailing": (LMS, TRAILING, 6),
    "lms karras": (LMS, KARRAS, 9),
    "ddpm": (DDPM, {}, 8),
    "ddpm leading": (DDPM, {**LEADING, "clip_sample": False, "variance_type": "fixed_large"}, 8),
    "ddpm trailing": (DDPM, {**TRAILING, "variance_type": "fixed_small_log"}, 7),
    "ddpm bounded": (DDPM, {"timestep_spacing": "linspace", **BOUNDED}, 8),
    "ddpm zero snr": (DDPM, {"rescale_betas_zero_snr": True, **TRAILING}, 8),
    "euler ancestral": (ANCESTRAL, {}, 8),
    "euler ancestral leading": (ANCESTRAL, LEADING, 7),
    "euler ancestral zero snr": (ANCESTRAL, {"rescale_betas_zero_snr": True, **TRAILING}, 8),
}


@pytest.mark.full
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("case", PEERS)
def test_steps_of_diffusers(case, prediction, monkeypatch):
    """Every step, against theirs in double precision: 1e-5 of the largest z."""
    name, options, steps = PEERS[case]
    options = ({} if name == "EDMEulerScheduler" else STABLE) | options
    if prediction not in options.get("prediction_type", prediction) or prediction == "epsilon" and "zero snr" in case:
        pytest.skip("the prediction is not defined there")
    if name == "EDMEulerScheduler" and prediction != "epsilon":
        pytest.skip("there is one kind of EDM prediction here")
    scheduler = Scheduler(name, {**options, "prediction_type": prediction})
    z = np.random.default_rng(0).normal(size=SHAPE)
    keys = jax.random.split(jax.random.key(0), len(z))
    trajectory = scheduler.discretise(steps)
    found = ours(scheduler, steps, z, keys, monkeypatch)
    wanted, times, peer = theirs(monkeypatch, name, {**options, "prediction_type": prediction}, steps, network, z, keys)
    if name == "HeunDiscreteScheduler":
        wanted, times = [*wanted[1:-1:2], wanted[-1]], [*times[:1], *times[1::2]]  # after both halves of a step
    elif name == "PNDMScheduler" and steps > 1:
        wanted, times = wanted[1:], [*times[:1], *times[2:]]
    np.testing.assert_allclose(trajectory.timesteps.numbers[:steps], times, rtol=1e-5, atol=1e-5)
    assert len(found) == len(wanted)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        scaled = hasattr(peer, "sigmas") and name not in (DPM, UNIPC, DEIS, "EDMEulerScheduler")
        if scaled and not trajectory.steps.last[i]:
            b = b / np.sqrt(1 + np.exp(-trajectory.steps.next[i]))  # theirs is z / alpha
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=1e-5, err_msg=f"step {i}")
