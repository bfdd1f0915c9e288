"""Null-text optimisation: against the algorithm written out in NumPy for a denoiser whose gradient is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.families import VP
from vdm_jax.diffusion.inversion import ddim_inverted, sampled_from
from vdm_jax.diffusion.null_text import null_text_optimised, sampled_with_nulls
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.sampling import steps_between
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.diffusion.thresholds import Threshold
from vdm_jax.errors import UserError

RNG = np.random.default_rng(0)
BATCH, SIZE, WIDTH, STEPS, ITERATIONS, RATE = 2, 6, 4, 3, 5, 0.05
MAP, X = RNG.normal(size=(WIDTH, SIZE)).astype(np.float32), RNG.normal(size=(BATCH, SIZE)).astype(np.float32)
NULL = RNG.normal(size=(BATCH, 1, WIDTH)).astype(np.float32)
LEVELS = np.float32([-3.0, -0.5, 2.0])
WEIGHT = 2.0


def guided(z, logsnr, null):
    """`cond + w (cond - null)` of estimates that are linear in z and in the null caption."""
    plain = 0.4 * z
    return plain + WEIGHT * (plain - (0.3 * z + null[:, 0] @ MAP))


def plain(z, logsnr):
    return 0.4 * z


@pytest.fixture(scope="module")
def trajectory():
    return ddim_inverted(plain, jnp.asarray(X), steps_between(LEVELS), VP)


def sqrt_sigmoid(level):
    return np.sqrt(1 / (1 + np.exp(-np.float64(level))))


def by_hand(path, x, null):
    """Algorithm 1 of the paper: Adam with its published decays, and its gradient by hand."""
    z, null, found = np.float64(path[0]), np.float64(null), []
    for number, level in enumerate(LEVELS):
        target, last = (path[number + 1], False) if number + 1 < len(LEVELS) else (x, True)
        alpha, sigma = sqrt_sigmoid(level), sqrt_sigmoid(-level)
        alpha_s, sigma_s = (1.0, 0.0) if last else (sqrt_sigmoid(a) for a in (LEVELS[number + 1],
                                                                             -LEVELS[number + 1]))

        def step(null, z=z, alpha=alpha, sigma=sigma, alpha_s=alpha_s, sigma_s=sigma_s):
            x_hat = guided(z, None, null)
            return alpha_s * x_hat + sigma_s * (z - alpha * x_hat) / sigma

        first, second = np.zeros_like(null), np.zeros_like(null)
        for count in range(1, ITERATIONS + 1):
            factor = (alpha_s - sigma_s * alpha / sigma) * -WEIGHT
            gradient = (2 / SIZE * (step(null) - target) * factor @ MAP.T)[:, None]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            null = null - RATE * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        found.append(null)
        z = step(null)
    return np.stack(found), z


def test_the_embeddings_are_those_of_the_algorithm(trajectory):
    steps = steps_between(LEVELS)
    options = {"iterations": ITERATIONS, "learning_rate": RATE}
    found = null_text_optimised(guided, jnp.asarray(NULL), trajectory, jnp.asarray(X), steps, VP, **options)
    expected, x = by_hand(np.asarray(trajectory), X, NULL)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(sampled_with_nulls(guided, trajectory[0], found, steps, VP), x, atol=1e-4)
    one = null_text_optimised(guided, jnp.asarray(NULL[1:]), trajectory[:, 1:], jnp.asarray(X[1:]), steps, VP,
                              **options)
    np.testing.assert_allclose(one, found[:, 1:], atol=1e-4)  # whatever else is in the batch


def test_guided_sampling_leads_back(trajectory):
    """With as many embeddings as values the optimum is exact; without the optimisation it is far."""
    steps, wide = steps_between(LEVELS), np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))[0]

    def free(z, logsnr, null):
        return 0.4 * z + WEIGHT * (0.1 * z - null[:, 0] @ jnp.asarray(wide, jnp.float32))

    null = jnp.zeros((BATCH, 1, SIZE))
    found = jax.jit(lambda null: null_text_optimised(free, null, trajectory, jnp.asarray(X), steps, VP, iterations=400,
                                                     learning_rate=0.02))(null)
    back = sampled_with_nulls(free, trajectory[0], found, steps, VP)
    still = sampled_with_nulls(free, trajectory[0], jnp.zeros_like(found), steps, VP)
    assert np.abs(back - X).max() < 1e-2 < np.abs(still - X).max()


def test_the_samplers_threshold_counts(trajectory):
    """With embeddings that are the same at all steps it is the sampler with one denoiser; and other embeddings are
    found for it than without a threshold."""
    steps, sampler = steps_between(LEVELS), DDIM(threshold=Threshold(limit=0.1))
    same = jnp.broadcast_to(jnp.asarray(NULL), (STEPS, *NULL.shape))
    found = sampled_with_nulls(guided, trajectory[0], same, steps, VP, sampler=sampler)
    expected = sampled_from(trajectory[0], sampler, lambda z, level: guided(z, level, NULL),
                            jax.random.split(jax.random.key(0), BATCH), steps, Process(schedule=CosineSchedule()))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() <= 0.1 + 1e-6
    options = {"iterations": 1, "learning_rate": RATE}
    with_threshold, without = (null_text_optimised(guided, jnp.asarray(NULL), trajectory, jnp.asarray(X), steps, VP,
                                                   sampler=each, **options) for each in (sampler, DDIM()))
    assert np.abs(with_threshold - without).max() > 1e-3


@pytest.mark.parametrize(("name", "value"), [("iterations", 0), ("learning_rate", 0.0)])
def test_bad_options(trajectory, name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        null_text_optimised(guided, jnp.asarray(NULL), trajectory, jnp.asarray(X), steps_between(LEVELS), VP,
                            **{name: value})
