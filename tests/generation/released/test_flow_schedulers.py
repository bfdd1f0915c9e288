"""Schedulers of flow matching of released models: what is read and refused, and, in full, every step of diffusers'."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.flow_sigmas import DynamicShift
from vdm_jax.diffusion.sampling import Walk
from vdm_jax.generation.one_stage import released_steps
from vdm_jax.generation.released.schedulers import Scheduler

UNIPC, EULER = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
# The file of Wan 2.1, as diffusers' converter writes it.
WAN = {**FLOW, "num_train_timesteps": 1000, "flow_shift": 3.0}
LTX = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
       "max_image_seq_len": 4096, "shift_terminal": 0.1}
CASES = {"wan": (UNIPC, WAN, 10), "wan of many": (UNIPC, {**WAN, "flow_shift": 12.0}, 40),
         "wan of order 3": (UNIPC, {**WAN, "solver_order": 3}, 9), "hunyuan": (EULER, {"shift": 7.0}, 10),
         "euler stretched": (EULER, {"shift": 2.0, "shift_terminal": 0.1}, 8), "ltx": (EULER, LTX, 8)}
TOKENS = 2000


def test_what_is_read():
    found = Scheduler(UNIPC, WAN)
    assert found.process.prediction == "flow" and found.schedule.shift == found.steps.flow.shift == 3
    ltx = Scheduler(EULER, LTX).flow
    assert ltx.dynamic == DynamicShift() and ltx.terminal == 0.1 and ltx.grid == "linear"


@pytest.mark.parametrize("name, options, named", [
    (UNIPC, {"use_flow_sigmas": True}, ("'epsilon'", "'flow_prediction'")),
    (UNIPC, {**WAN, "use_karras_sigmas": True}, ("use_flow_sigmas=true", "no other sigmas")),
    (UNIPC, {**WAN, "final_sigmas_type": "sigma_min"}, ("'sigma_min'", "'zero'")),
    (UNIPC, {**WAN, "flow_shift": -1.0}, ("flow_shift=-1.0",)),
    (EULER, {"shift": 0}, ("shift=0",)), (EULER, {"invert_sigmas": True}, ("invert_sigmas=True",)),
    (EULER, {**LTX, "base_image_seq_len": 4096}, ("base_image_seq_len=4096",)),
    (EULER, {"stochastic_sampling": True}, ("stochastic_sampling",)),
])
def test_refusals(name, options, named):
    with pytest.raises(Exception) as error:
        Scheduler(name, options)
    assert all(part in str(error.value) for part in named), error.value


def test_a_dynamic_shift_needs_the_tokens_of_a_video():
    with refused("FlowSigmas.dynamic", "no tokens"):
        Scheduler(EULER, LTX).discretise(4)


def network(z, told, xp=jnp):
    """Something that depends on both."""
    told = told if xp is np else told[:, None, None, None, None]
    return 0.7 * xp.tanh(z) + 0.1 * z + 0.05 * xp.sin(told / 97.0)


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_steps_of_diffusers(case):
    """Every step, 1e-5 of the largest z."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    name, options, steps = CASES[case]
    scheduler, z = Scheduler(name, options), np.random.default_rng(0).normal(size=(2, 1, 2, 2, 1)).astype(np.float32)
    stage = SimpleNamespace(process=scheduler.process, shape=z.shape[1:],
                            network=SimpleNamespace(attended=lambda *size: iter([TOKENS])))
    sampling = scheduler.sampling(steps=steps)
    found, embedded = released_steps(stage, sampling)
    peer, more = getattr(diffusers, name)(**options), {}
    if "base_shift" in options:  # as the pipeline of LTX-Video gives them
        more = {"mu": float(np.log(DynamicShift().shift(TOKENS))), "sigmas": np.linspace(1, 1 / steps, steps)}
    peer.set_timesteps(steps, **more)
    np.testing.assert_allclose(found.timesteps.numbers[:steps], peer.timesteps.numpy(), rtol=1e-5, atol=1e-4)
    denoise = scheduler.process.denoiser(lambda z, logsnr: network(z, 1000 * jax.nn.sigmoid(-jnp.interp(
        logsnr, *map(jnp.asarray, embedded)) / 2)))
    keys = jax.random.split(jax.random.key(0), len(z))
    walk = Walk(sampling.sampler, scheduler.process, z.shape, steps)
    carry = walk.begin(keys, jnp.asarray(found.steps.level[0]), noise=jnp.asarray(z), std=found.initial_std)
    run = jax.jit(lambda carry, steps: jax.lax.scan(lambda carry, step: (
        new := walk.advance(denoise, keys, carry, step)[0], new[0]), carry, steps)[1])
    ours = run(carry, jax.tree.map(jnp.asarray, found.steps))
    x = torch.from_numpy(z)
    for i, timestep in enumerate(peer.timesteps):
        x = peer.step(torch.from_numpy(network(x.numpy(), float(timestep), np)).float(), timestep, x).prev_sample
        np.testing.assert_allclose(ours[i], x.numpy(), atol=2e-5 * float(x.abs().max()), rtol=2e-5, err_msg=f"step {i}")
