"""Samplers on a mixture of two Gaussians, whose optimal denoiser is known in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.conftest import SHAPE
from vdm_jax.diffusion.arrays import expand
from vdm_jax.diffusion.conditional import masked_error, reconstruction_guided, replaced
from vdm_jax.diffusion.guidance import combine
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, DDPM, DPMSolver, Heun
from vdm_jax.diffusion.sampling import sample
from vdm_jax.diffusion.schedules import CosineSchedule, EDMSchedule

PROCESS = Process(schedule=CosineSchedule())
EXPLODING = Process(schedule=EDMSchedule(), prediction="edm")
WEIGHTS, SPREAD = np.array([0.7, 0.3]), 0.2
MEANS = np.array([[0.8, 0.5, 0.8, 0.5], [-0.7, 0.6, -0.7, 0.6]])  # two frames of two numbers
COUNT = 6000


def denoiser(process, weights=WEIGHTS):
    """E[x | z]: the components' own estimates, weighted by how likely each made z."""
    def denoise(z, logsnr):
        alpha, sigma = (expand(a, z[:, :1, 0, 0, 0]) for a in process.schedule.alpha_sigma(logsnr))
        flat, variance = z.reshape(len(z), -1), alpha**2 * SPREAD**2 + sigma**2
        apart = flat[:, None] - alpha[:, None] * MEANS  # [B, components, D]
        share = jax.nn.softmax(jnp.log(weights) - jnp.square(apart).sum(-1) / (2 * variance), axis=-1)
        each = MEANS + (alpha * SPREAD**2 / variance)[:, None] * apart
        return (share[..., None] * each).sum(1).reshape(z.shape)

    return denoise


def drawn(sampler, process, denoise, steps=200):
    keys = jax.random.split(jax.random.key(0), COUNT)
    x = jax.jit(lambda keys: sample(sampler, denoise, keys, (COUNT, *SHAPE), process, steps))(keys)
    return np.asarray(x).reshape(COUNT, -1)


def nearest(x):
    return np.square(x[:, None] - MEANS).sum(-1).argmin(1)


@pytest.mark.parametrize(("sampler", "process"), [
    (DDPM(), PROCESS), (DDIM(), PROCESS), (DPMSolver(), PROCESS), (Heun(), PROCESS), (Heun(), EXPLODING)])
def test_samples_have_the_components_of_the_mixture(sampler, process):
    x = drawn(sampler, process, denoiser(process))
    component = nearest(x)
    np.testing.assert_allclose(np.bincount(component) / COUNT, WEIGHTS, atol=0.02)
    for k, mean in enumerate(MEANS):
        own = x[component == k]
        np.testing.assert_allclose(own.mean(0), mean, atol=0.02)
        np.testing.assert_allclose(np.cov(own.T), SPREAD**2 * np.eye(4), atol=0.008)


def test_guidance_makes_the_wanted_component_likelier_than_the_mixture_alone():
    """The conditional model is one component; with w > 0 samples move away from the other one."""
    one = denoiser(PROCESS, np.array([1e-9, 1.0]))
    unconditional = denoiser(PROCESS)
    plain, guided = (drawn(DDIM(), PROCESS, combine(lambda z, level: (one(z, level), unconditional(z, level)),
                                                    [(0, 1, w)])) for w in (0.0, 2.0))
    assert (nearest(plain) == 1).mean() > 0.999 and (nearest(guided) == 1).mean() > 0.999
    away = (MEANS[1] - MEANS[0]) / np.linalg.norm(MEANS[1] - MEANS[0])
    assert ((guided - plain) @ away).mean() > 0.01


def test_a_known_frame_decides_the_component_of_the_other():
    """Replacement lets the other frame drift to the component that is likelier beforehand; guidance does not."""
    seen = np.array([0.0, 0.55])  # of the first frame: nearer to the second component, which is rarer
    evidence = np.exp(-np.square(seen - MEANS[:, :2]).sum(1) / (2 * SPREAD**2)) * WEIGHTS
    known = jnp.asarray(np.concatenate([seen, [0, 0]])).reshape(1, *SHAPE)
    mask = jnp.asarray([1.0, 1, 0, 0]).reshape(1, *SHAPE)
    plain = denoiser(PROCESS)
    guided = reconstruction_guided(plain, [masked_error(known, mask)], 2.0, PROCESS.schedule.family)
    wanted = evidence[1] / evidence.sum()
    found = {}
    for name, denoise in (("replacement", plain), ("reconstruction", guided)):
        x = drawn(DDPM(), PROCESS, replaced(denoise, known, mask))
        found[name] = (np.square(x[:, None, 2:] - MEANS[:, 2:]).sum(-1).argmin(1) == 1).mean()
    assert abs(found["reconstruction"] - wanted) < abs(found["replacement"] - wanted), (found, wanted)
