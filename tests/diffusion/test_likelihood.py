"""Densities by the probability-flow ODE, against those of data whose denoiser is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.refusals import refused
from vdm_jax.diffusion.arrays import expand
from vdm_jax.diffusion.likelihood import bits_per_dim, dequantised, log_density
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import CosineSchedule, EDMSchedule, FlowSchedule

SHAPE = (3, 2, 4, 4, 3)
MEANS, WEIGHTS, SPREAD = jnp.array([-0.6, 0.5]), jnp.array([0.3, 0.7]), 0.2
SCHEDULES = [CosineSchedule(), EDMSchedule(), FlowSchedule()]


def mixture(process):
    """The denoiser of values that are independent draws from a mixture of two normal distributions."""
    def denoise(z, logsnr):
        alpha, sigma = (expand(a, z) for a in process.schedule.alpha_sigma(logsnr))
        y, noise = (z / alpha)[..., None], ((sigma / alpha) ** 2)[..., None]
        variance = SPREAD**2 + noise
        share = jax.nn.softmax(jnp.log(WEIGHTS) - (y - MEANS) ** 2 / (2 * variance), axis=-1)
        return (share * (noise * MEANS + SPREAD**2 * y) / variance).sum(-1)
    return denoise


def process_of(schedule):
    return Process(schedule=schedule, prediction="x")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_density_of_a_mixture(schedule):
    process, rng = process_of(schedule), np.random.default_rng(0)
    parts = rng.choice(2, SHAPE, p=np.asarray(WEIGHTS, np.float64) / float(WEIGHTS.sum()))
    x = np.asarray(MEANS)[parts] + SPREAD * rng.standard_normal(SHAPE)
    found = jax.jit(lambda x: log_density(process, mixture(process), x, jax.random.key(0), steps=200))(
        jnp.asarray(x, jnp.float32))
    density = sum(float(w) * stats.norm.pdf(x, float(m), SPREAD) for w, m in zip(WEIGHTS, MEANS, strict=True))
    np.testing.assert_allclose(found, np.log(density).sum((1, 2, 3, 4)), atol=0.1)  # of about -30
    other = np.asarray(log_density(process, mixture(process), jnp.full(SHAPE, 1.5), jax.random.key(0), steps=10))
    assert (other < np.asarray(found) - 100).all()  # far from the data


def test_the_divergence_of_a_field_that_mixes_values():
    """Normal data with correlated values: the signs' estimate is right in the mean, and more of them come closer."""
    process = process_of(CosineSchedule())
    mix = np.random.default_rng(1).standard_normal((4, 4)) / 4
    covariance = jnp.asarray(mix @ mix.T + 0.05 * np.eye(4), jnp.float32)

    def denoise(z, logsnr):
        alpha, sigma = process.schedule.alpha_sigma(logsnr[0])
        y = (z / alpha).reshape(len(z), 4)
        return (y @ jnp.linalg.solve(covariance + (sigma / alpha) ** 2 * jnp.eye(4), covariance)).reshape(z.shape)

    x = np.random.default_rng(2).multivariate_normal(np.zeros(4), np.asarray(covariance), size=5)
    exact = stats.multivariate_normal(np.zeros(4), np.asarray(covariance)).logpdf(x)
    videos = jnp.asarray(x.reshape(5, 1, 2, 2, 1), jnp.float32)

    def errors(probes):
        return np.abs(log_density(process, denoise, videos, jax.random.key(3), steps=60, probes=probes) - exact)

    assert errors(256).mean() < 0.15 and errors(256).mean() < errors(1).mean()


def test_dequantised_values_fill_their_bins():
    values = jnp.arange(256) / 127.5 - 1
    x = jnp.tile(values.reshape(1, 1, 16, 16, 1), (200, 1, 1, 1, 1))
    found = np.asarray(dequantised(x, jax.random.key(0)))
    assert np.abs(found - np.asarray(x)).max() <= 1 / 255 + 1e-6
    np.testing.assert_array_equal(np.round((found + 1) * 127.5), np.round((np.asarray(x) + 1) * 127.5))
    np.testing.assert_allclose((found - np.asarray(x)).std(), 2 / 255 / np.sqrt(12), rtol=0.01)


def test_bits_of_uniform_values():
    """All of [-1, 1] and half a bin on each side at one density: eight bits."""
    size = 12
    uniform = jnp.full(3, -size * np.log(2 + 2 / 255), jnp.float32)
    np.testing.assert_allclose(bits_per_dim(uniform, size), 8, atol=1e-5)


def test_no_step_is_refused():
    process = process_of(CosineSchedule())
    with refused("steps", "0"):
        log_density(process, mixture(process), jnp.zeros(SHAPE), jax.random.key(0), steps=0)
