"""Noise levels of single frames `[B, T]`: drawn independently, each frame's error with the weight of its own level, and
sampled with every frame behind the one before it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.arrays import expand
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, DDPM, Consistency, Heun
from vdm_jax.diffusion.sampling import sample, sampling_levels, steps_between
from vdm_jax.diffusion.schedules import EDMSchedule, FlowSchedule
from vdm_jax.diffusion.weightings import MinSNRWeighting

SHAPE = (3, 3, 4, 4, 2)  # as many frames as examples, where rows and frames could be mixed
PROCESSES = [Process(), Process(prediction="eps", weighting=MinSNRWeighting()), Process(prediction="x", multiscale=2),
             Process(error="absolute"), Process(schedule=FlowSchedule(), prediction="flow"),
             Process(schedule=EDMSchedule(), prediction="edm")]


def half(z, logsnr):
    """A network that is wrong in a way that depends on both of its inputs, frame by frame."""
    return 0.5 * z + expand(0.01 * logsnr, z)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, *SHAPE))
    return [jnp.asarray(a, jnp.float32) for a in (x, noise, rng.uniform(-4, 4, SHAPE[:2]))]


def test_every_frame_draws_a_level_of_its_own():
    process = Process(frame_levels=True)
    levels, noise = process.draw(jax.random.key(0), (8, 4, 2, 2, 3))
    assert levels.shape == (8, 4) and noise.shape == (8, 4, 2, 2, 3)
    times = np.sort(process.schedule.time(levels).ravel())
    np.testing.assert_allclose(np.diff(times), 1 / 32, atol=1e-5)  # one stratified draw over all frames
    many = np.stack([process.draw(jax.random.key(k), (4, 2, 1, 1, 1))[0] for k in range(200)])
    assert abs(np.corrcoef(many[:, 0, 0], many[:, 0, 1])[0, 1]) < 0.3
    assert Process().draw(jax.random.key(0), (8, 4, 2, 2, 3))[0].shape == (8,)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.prediction}-{p.multiscale}-{p.error}")
def test_the_loss_is_the_mean_of_those_of_the_frames(process, arrays):
    x, noise, levels = arrays
    loss, aux = process.loss(half, x, None, logsnr=levels, noise=noise)
    frames = [process.loss(half, x[:, t : t + 1], None, logsnr=levels[:, t], noise=noise[:, t : t + 1])
              for t in range(SHAPE[1])]
    np.testing.assert_allclose(loss, np.mean([of_frame for of_frame, _ in frames], axis=0), rtol=1e-4)
    for name, value in aux.items():
        np.testing.assert_allclose(value, np.mean([seen[name] for _, seen in frames], axis=0), rtol=1e-4, atol=1e-5)


def test_the_same_level_for_all_frames_is_the_level_of_the_clip(arrays):
    x, noise, levels = arrays
    mask = jnp.ones((3, 3, 1, 1, 1)).at[0, 1:].set(0)
    one, every = (Process().loss(half, x, None, logsnr=level, noise=noise, mask=mask)[0]
                  for level in (levels[:, 0], jnp.repeat(levels[:, :1], 3, 1)))
    np.testing.assert_allclose(one, every, rtol=1e-5)


def test_a_masked_frame_has_no_loss_whatever_its_level(arrays):
    x, noise, levels = arrays
    mask = jnp.ones((3, 3, 1, 1, 1)).at[:, 2].set(0)
    one, other = (Process().loss(half, x, None, logsnr=level, noise=noise, mask=mask)[0]
                  for level in (levels, levels.at[:, 2].set(9.0)))
    np.testing.assert_array_equal(one, other)


def test_frames_wait_for_the_one_before():
    levels = jnp.array([-2.0, 0.0, 2.0])
    steps = steps_between(levels, frame_lag=2, frames=3)
    np.testing.assert_array_equal(steps.level.T, [[-2, 0, 2, 2, 2, 2, 2], [-2, -2, -2, 0, 2, 2, 2],
                                                  [-2, -2, -2, -2, -2, 0, 2]])
    np.testing.assert_array_equal(steps.last, np.arange(7)[:, None] == [2, 4, 6])
    moves = np.asarray(steps.level != steps.next)
    np.testing.assert_array_equal(moves.T, [[k in range(2 * t, 2 * t + 3) for k in range(7)] for t in range(3)])


def denoise(z, logsnr):
    """The best estimate of independent pixels of variance 1/4, frame by frame."""
    alpha, sigma = (expand(a, z) for a in Process().schedule.alpha_sigma(logsnr))
    return 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * z


@pytest.mark.parametrize("lag", [1, 3])
def test_frames_that_do_not_see_each_other_come_out_as_without_a_lag(lag):
    keys = jax.random.split(jax.random.key(0), 3)
    together, behind = (jax.jit(lambda keys, n=n: sample(DDIM(), denoise, keys, SHAPE, Process(), 6, frame_lag=n))(keys)
                        for n in (0, lag))
    np.testing.assert_allclose(behind, together, atol=1e-5)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(eta=1.0), Consistency()], ids=lambda s: type(s).__name__)
def test_samplers_that_draw_noise_reach_the_data_with_a_lag(sampler):
    keys = jax.random.split(jax.random.key(1), 400)
    x = jax.jit(lambda keys: sample(sampler, denoise, keys, (400, 3, 2, 2, 1), Process(), 20, frame_lag=2))(keys)
    together = jax.jit(lambda keys: sample(sampler, denoise, keys, (400, 3, 2, 2, 1), Process(), 20))(keys)
    np.testing.assert_allclose(x.std((0, 2, 3, 4)), together.std(), rtol=0.08)


def test_the_denoiser_sees_a_level_per_frame():
    seen = []

    def hook(x_hat, z, logsnr, index):
        jax.debug.callback(lambda level, k: seen.append((int(k), np.asarray(level))), logsnr, index)
        return x_hat

    sample(DDIM(), denoise, jax.random.split(jax.random.key(0), 2), (2, 3, 1, 1, 1), Process(), 4, frame_lag=1,
           hook=hook)
    jax.effects_barrier()
    levels = np.asarray(sampling_levels(DDIM(), Process().schedule, 4))
    assert len(seen) == 4 + 2
    for k, level in seen:
        np.testing.assert_allclose(level, [[levels[np.clip(k - t, 0, 3)] for t in range(3)]] * 2, rtol=1e-5)


def test_what_cannot_lag_is_refused():
    keys = jax.random.split(jax.random.key(0), 3)
    with refused("frame_lag", "frame_lag=1", "Heun", "DDPM, DDIM, Euler"):
        sample(Heun(), denoise, keys, SHAPE, Process(), 3, frame_lag=1)
    with refused("frame_lag", "frame_lag=1", "DDIM", "stop=0.0"):
        sample(DDIM(), denoise, keys, SHAPE, Process(), 3, frame_lag=1, stop=0.0)


