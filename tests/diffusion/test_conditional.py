"""Sampling given a part, on Gaussian data whose exact conditional is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.conftest import SHAPE, Gaussian
from tests.refusals import refused
from vdm_jax.diffusion.conditional import low_resolution_error, masked_error, reconstruction_guided, replaced
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.sampling import sample
from vdm_jax.diffusion.schedules import CosineSchedule

PROCESS = Process(schedule=CosineSchedule())
FAMILY = PROCESS.schedule.family
COUNT, STEPS = 4000, 200
# Four frames of one number, strongly correlated: x_given says much about the rest.
DISTANCES = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
CORRELATED = Gaussian(np.array([0.4, -0.3, 0.2, 0.0]), 0.5 * 0.9**DISTANCES)
OBSERVATIONS = {  # rows of the linear map from the flattened video to what is given
    "extension": np.eye(4)[:2], "interpolation": np.eye(4)[[0, 3]],
    "low resolution": np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]),
}


def conditional(matrix: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x given `matrix @ x = seen`."""
    cross = CORRELATED.covariance @ matrix.T
    gain = cross @ np.linalg.inv(matrix @ cross)
    return CORRELATED.mean + gain @ (seen - matrix @ CORRELATED.mean), CORRELATED.covariance - gain @ cross.T


def drawn(name: str, weight: float | None) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Samples `[N, 4]` given an observation two deviations away, by guidance or (None) replacement; and the truth."""
    matrix = OBSERVATIONS[name]
    seen = matrix @ CORRELATED.mean + np.array([1.0, 0.6])
    denoise = CORRELATED.denoiser(PROCESS)

    def observe(x):
        return x.reshape(x.shape[0], -1) @ matrix.T

    known = jnp.asarray(matrix.T @ seen).reshape(1, *SHAPE)  # for rows of the identity: the frames themselves
    mask = jnp.asarray(matrix.sum(0)).reshape(1, *SHAPE)
    if weight is not None:
        error = (low_resolution_error(jnp.asarray(seen)[None], observe) if name == "low resolution" else
                 masked_error(known, mask))
        denoise = reconstruction_guided(denoise, [error], weight, FAMILY)
    if name != "low resolution":
        denoise = replaced(denoise, known, mask)
    keys = jax.random.split(jax.random.key(0), COUNT)
    x = jax.jit(lambda keys: sample(DDPM(), denoise, keys, (COUNT, *SHAPE), PROCESS, STEPS))(keys)
    return np.asarray(x).reshape(COUNT, -1), conditional(matrix, seen)


def errors(name: str, weight: float | None) -> tuple[float, float]:
    """Largest errors of mean and covariance."""
    x, (mean, covariance) = drawn(name, weight)
    return np.abs(x.mean(0) - mean).max(), np.abs(np.cov(x.T) - covariance).max()


@pytest.mark.parametrize("name", ["extension", "interpolation"])
def test_reconstruction_guidance_comes_much_closer_to_the_exact_conditional_than_replacement(name):
    """With the weight of two that is best for this data; with one, the errors of the mean are .27 and .49 of it."""
    guided, plain = errors(name, 2.0), errors(name, None)
    assert guided[0] < 0.4 * plain[0] and guided[1] < 0.2 * plain[1]
    assert plain[0] > 0.1


def test_super_resolution_by_guidance_reconstructs_what_is_known():
    """Without guidance the samples know nothing of the low-resolution video."""
    (mean, covariance), (free_mean, free_covariance) = errors("low resolution", 1.0), errors("low resolution", 0.0)
    assert free_mean > 0.5 and mean < 0.25 * free_mean and covariance < 0.5 * free_covariance


def test_the_known_part_is_what_is_known():
    x, (mean, _) = drawn("extension", 1.0)
    np.testing.assert_allclose(x[:, :2], np.broadcast_to(mean[:2], (COUNT, 2)), atol=1e-5)


def test_the_guided_estimate_by_hand():
    """The denoiser is affine, so the gradient of the error is its matrix; the sum over pixels, not their mean."""
    denoise = CORRELATED.denoiser(PROCESS)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)
    logsnr, weight = jnp.array([-1.0, 0.5, 2.0]), 3.0
    known, mask = jnp.ones((1, *SHAPE)), jnp.asarray([1.0, 1.0, 0.0, 0.0]).reshape(1, *SHAPE)
    got = reconstruction_guided(denoise, [masked_error(known, mask)], weight, FAMILY)(z, logsnr)
    x = denoise(z, logsnr)
    for i in range(3):
        jacobian = jax.jacobian(lambda z, i=i: denoise(z[None], logsnr[i:i + 1])[0])(z[i]).reshape(4, 4)
        residual = (mask * (known - x))[i].reshape(4)
        alpha = FAMILY.alpha_sigma(logsnr[i])[0]
        expected = x[i].reshape(4) + weight * alpha * jacobian.T @ residual
        np.testing.assert_allclose(got[i].reshape(4), expected, rtol=1e-4, atol=1e-5)


def test_bad_arguments():
    with refused("conditional.reconstruction_guided", "weight=-1.0", ">= 0"):
        reconstruction_guided(lambda z, _: z, [lambda x: x.sum()], -1.0, FAMILY)
    with refused("conditional.reconstruction_guided", "0"):
        reconstruction_guided(lambda z, _: z, [], 1.0, FAMILY)


def test_guidance_of_weight_one_is_the_exact_conditional_only_as_noise_goes():
    """The variance it assumes of what is given, sigma^2 / alpha^2, is exact in that limit."""
    denoise = CORRELATED.denoiser(PROCESS)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, *SHAPE)), jnp.float32)
    known, mask = jnp.ones((1, *SHAPE)), jnp.asarray([1.0, 1.0, 0.0, 0.0]).reshape(1, *SHAPE)
    guided = reconstruction_guided(denoise, [masked_error(known, mask)], 1.0, FAMILY)
    gaps = []
    for level in (0.0, 3.0, 6.0):
        logsnr = jnp.full((1,), level)
        x = np.asarray(denoise(z, logsnr)).reshape(4)
        covariance = np.linalg.inv(np.linalg.inv(CORRELATED.covariance) + np.exp(level) * np.eye(4))  # of x given z
        change = covariance[2:, :2] @ np.linalg.solve(covariance[:2, :2], 1 - x[:2])
        gap = np.asarray(guided(z, logsnr)).reshape(4)[2:] - x[2:] - change
        gaps.append(np.linalg.norm(gap) / np.linalg.norm(change))
    assert gaps[0] > 0.3 and gaps[1] < 0.5 * gaps[0] and gaps[2] < 0.1
