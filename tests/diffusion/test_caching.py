"""Denoisers that keep deep features from step to step, with every sampler."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.caching import Cache, CachedDenoiser
from vdm_jax.diffusion.frame_schedules import FrameSchedule
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Heun, Sampler
from vdm_jax.diffusion.sampling import sample

SHAPE, STEPS = (2, 2, 2, 2, 1), 6
KEYS = jax.random.split(jax.random.key(0), 2)


def denoise_of(through):
    """A denoiser with something deep that depends on the noise level and the video."""
    def denoise(z, logsnr):
        level = logsnr.reshape(logsnr.shape + (1,) * (z.ndim - logsnr.ndim))
        return 0.3 * jnp.tanh(z) + through(lambda: jnp.sin(z) * jax.nn.sigmoid(level))

    return denoise


def sampled(sampler, *plans, **options):
    """The videos of each plan, of None without features."""
    def made(plan):
        denoise = denoise_of(lambda make: make()) if plan is None else CachedDenoiser(denoise_of, plan)
        return sample(sampler, denoise, KEYS, SHAPE, Process(), STEPS, **options)

    return [np.asarray(x) for x in jax.jit(lambda: [made(plan) for plan in plans])()]


@pytest.mark.parametrize("kind", get_args(Sampler))
def test_every_sampler_keeps_features(kind):
    """A plan of whole evaluations changes no bit; another one changes the video."""
    plain, whole, reused = sampled(kind(), None, Cache(every=1), Cache(every=3))
    assert np.array_equal(whole, plain) and np.abs(reused - plain).max() > 1e-3


def test_steps_between_reuse_the_features_of_the_last_whole_one():
    """DDIM by hand, with the deep part of steps 0 and 3 alone."""
    kept = []

    def hook(x_hat, z, logsnr, step):
        if int(step) in (0, 3):
            kept.append(jnp.sin(z) * jax.nn.sigmoid(logsnr.reshape(-1, 1, 1, 1, 1)))
        return 0.3 * jnp.tanh(z) + kept[-1]

    with jax.disable_jit():
        by_hand = sample(DDIM(), lambda z, logsnr: z, KEYS, SHAPE, Process(), STEPS, hook=hook)
    assert len(kept) == 2
    listed, plain, whole = sampled(DDIM(), Cache(steps=(0, 3)), None, Cache(steps=tuple(range(STEPS))))
    np.testing.assert_allclose(listed, by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(whole, plain)


def test_second_estimates_of_a_step_go_by_its_plan_and_leave_nothing():
    """Heun's method, whose second estimate is at the next level; features of frames with levels of their own."""
    two, three = sampled(Heun(), Cache(every=2), Cache(every=3))
    assert np.abs(two - three).max() > 1e-4
    lagging = {"frame_schedule": FrameSchedule(order="pyramid", lag=1.0)}
    plain, whole, reused = sampled(DDIM(), None, Cache(every=1), Cache(every=3), **lagging)
    np.testing.assert_array_equal(whole, plain)
    assert np.isfinite(reused).all() and np.abs(reused - plain).max() > 1e-4


def test_the_plan_says_how_many_steps_are_whole():
    assert [Cache(every=n).count(10) for n in (1, 3, 20)] == [10, 4, 1]
    assert Cache(steps=(0, 4, 9)).count(10) == 3
    for steps in ((1, 2), (0, 3, 2), (0, 0)):
        with refused("Cache.steps", "permitted: ascending numbers from 0"):
            Cache(steps=steps)
    with refused("Cache.every", "=0"):
        Cache(every=0)
