"""Sigmas of flow matching by name, and what samplers make of them, against recorded values of their authors' code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.flow_sigmas import DynamicShift, FlowSigmas, log_snr, shifted
from vdm_jax.diffusion.levels import ModeTime
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Sampler, UniPC
from vdm_jax.diffusion.sampling import sample
from vdm_jax.diffusion.scheduler_steps import SchedulerSteps
from vdm_jax.diffusion.schedules import CosineSchedule, FlowSchedule

# Velocity 0.3 x + 0.1 sigma from these values, 10 steps, shift 5: where diffusers' two schedulers and Wan's own end.
BEGIN = (1.0, -0.5, 2.0)
ENDS = {"unipc": (0.688726542567365, -0.4157193959379603, 1.4250238349042486),
        "original_unipc": (0.6889641397446798, -0.4156576319622185, 1.4253786542159461),
        "euler": (0.6817826, -0.4184022, 1.4152389)}
EMBEDDED = {"original_unipc": (999, 978, 952, 920, 882, 833, 768, 681, 555, 356),
            "unipc": (999, 978, 952, 921, 882, 833, 769, 682, 556, 359)}


@pytest.mark.parametrize("grid", ENDS)
def test_samples_of_a_known_velocity(grid):
    """To the seventh digit, in a process of flow matching, on the sampler's own grid and as a scheduler's steps."""
    sigmas = FlowSigmas(grid=grid, shift=5.0)
    process = Process(schedule=FlowSchedule(shift=5.0), prediction="flow")
    denoise = process.denoiser(lambda z, logsnr: 0.3 * z + 0.1 * jax.nn.sigmoid(-logsnr / 2).reshape(-1, 1, 1, 1, 1))
    begin = jnp.array(BEGIN).reshape(3, 1, 1, 1, 1)
    keys = jax.random.split(jax.random.key(0), 3)
    sampler = DDIM(grid=sigmas) if grid == "euler" else UniPC(grid=sigmas)
    found = sample(sampler, denoise, keys, begin.shape, process, 10, initial=begin)
    np.testing.assert_allclose(found.ravel(), ENDS[grid], rtol=0, atol=3e-7)
    name = "FlowMatchEulerDiscreteScheduler" if grid == "euler" else "UniPCMultistepScheduler"
    steps = SchedulerSteps(scheduler=name, flow=sigmas).discretise(process.schedule, 10)
    np.testing.assert_allclose(sigmas.sigmas(10), 1 / (1 + np.exp(steps.steps.level / 2)), atol=1e-6)
    if grid in EMBEDDED:
        assert steps.timesteps.numbers[:10].tolist() == list(EMBEDDED[grid])
    _, embedded = steps.timesteps.log_snrs(process.schedule)
    np.testing.assert_allclose(1000 / (1 + np.exp(embedded[:10] / 2)), steps.timesteps.numbers[:10], rtol=1e-6)
    assert steps.initial_std == 1 and (np.diff(steps.timesteps.levels) > 0).all()


def test_grids_by_name():
    euler = FlowSigmas(grid="euler", shift=5.0).sigmas(10)
    np.testing.assert_allclose(euler[[0, 1, -1]], [1, 0.97574, 0.0244141], atol=5e-6)  # the last is shifted twice
    last = {grid: FlowSigmas(grid=grid, shift=5.0).sigmas(50)[-4:] for grid in EMBEDDED}
    assert np.floor(1000 * last["original_unipc"]).tolist() == [302, 241, 172, 92]
    assert np.floor(1000 * last["unipc"]).tolist() == [305, 244, 175, 96]
    linear = FlowSigmas(shift=3.0).sigmas(4)
    np.testing.assert_allclose(linear, shifted(np.array([1, 0.75, 0.5, 0.25]), 3.0))
    np.testing.assert_allclose(shifted(shifted(0.3, 3.0), 2.0), shifted(0.3, 6.0))
    some = np.array([0.3, 0.9])
    np.testing.assert_allclose(log_snr(shifted(some, 3.0)), log_snr(some) - 2 * np.log(3.0))
    assert log_snr(np.array([1.0, 0.0])).tolist() == [-60, 60]


def test_dynamic_shift_and_terminal_stretch():
    """Those of LTX-Video."""
    dynamic = DynamicShift()
    np.testing.assert_allclose([np.log(dynamic.shift(n)) for n in (1024, 2560, 4096)], [0.95, 1.5, 2.05])
    sigmas = FlowSigmas(dynamic=dynamic, terminal=0.1)
    found, plain = sigmas.sigmas(8, 4096), shifted(1 - np.arange(8) / 8, np.exp(2.05))
    assert found[0] == 1 and abs(found[-1] - 0.1) < 1e-12
    np.testing.assert_allclose((1 - found) / (1 - found[-1]), (1 - plain) / (1 - plain[-1]), atol=1e-12)
    with refused("FlowSigmas.dynamic", "no tokens", "VideoTransformer"):
        sigmas.sigmas(8)
    assert from_json(Sampler, to_json(UniPC(grid=sigmas))) == UniPC(grid=sigmas)


def test_mode_sampling():
    """The quantiles of equation 20 of Esser et al. 2024: uniform at 0, and mid-path more often above."""
    schedule, count = FlowSchedule(), 4096
    for scale in (-1.0, 0.0, 1.29, 2 / (np.pi - 2)):
        logsnr = ModeTime(scale=scale).draw(jax.random.key(0), count, schedule)
        times = np.sort(np.asarray(schedule.time(logsnr)))
        u = 1 - (np.arange(count) + 0.5) / count
        np.testing.assert_allclose(times, 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u), atol=2e-3)
    with refused("ModeTime.scale", "=2.0"):
        ModeTime(scale=2.0)


@pytest.mark.parametrize("code, named, make", [
    ("FlowSigmas.shift", ("shift=3.0", "dynamic"), lambda: FlowSigmas(shift=3.0, dynamic=DynamicShift())),
    ("DynamicShift.tokens", ("(5, 5)",), lambda: DynamicShift(tokens=(5, 5))),
    ("FlowSigmas", ("CosineSchedule", "FlowSchedule"), lambda: FlowSigmas().levels(CosineSchedule(), 4, 1.0)),
    ("SchedulerSteps.flow", ("DDIMScheduler",), lambda: SchedulerSteps(scheduler="DDIMScheduler", flow=FlowSigmas())),
    ("SchedulerSteps.flow", ("None", "FlowMatchEuler"), lambda: SchedulerSteps(
        scheduler="FlowMatchEulerDiscreteScheduler")),
    ("scheduler_steps.SchedulerSteps.discretise", ("CosineSchedule", "FlowSchedule"), lambda: SchedulerSteps(
        scheduler="UniPCMultistepScheduler", flow=FlowSigmas()).discretise(CosineSchedule(), 4)),
])
def test_refusals(code, named, make):
    with refused(code, *named):
        make()
