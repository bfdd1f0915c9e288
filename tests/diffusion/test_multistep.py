"""Multistep samplers without another library: weights against integrals, and orders against an exact solution."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.families import VP
from vdm_jax.diffusion.multistep import _integrals, phi, solved
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, DEIS, LMS, PNDM, DPMSolver, Step, UniPC
from vdm_jax.diffusion.sampling import sample
from vdm_jax.diffusion.thresholds import Threshold

SHAPE = (1, 1, 1, 1, 1)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_is_its_integral(k):
    points, weights = np.polynomial.legendre.leggauss(40)
    s, weights = (points + 1) / 2, weights / 2
    for x in (-6.0, -1.01, -0.99, -1e-4, 0.0, 0.3, 1.5, 6.0):
        exact = (weights * np.exp((1 - s) * x) * s ** (k - 1)).sum() / math.factorial(k - 1)
        np.testing.assert_allclose(phi(k, jnp.float32(x)), exact, rtol=2e-5)


def test_weights_of_moments_and_of_polynomials():
    nodes, moments = [0.3, -1.2, 2.0], [0.4, 1.1, -0.7]
    for n in (1, 2, 3):
        expected = np.linalg.solve(np.vander(nodes[:n], increasing=True).T, moments[:n])
        np.testing.assert_allclose(solved(nodes[:n], moments), expected, rtol=1e-5)
    nodes = [1.0, 1.4, 2.1, 3.0]
    found = _integrals(nodes, 1.0, 0.6)
    np.testing.assert_allclose([sum(w * node**n for w, node in zip(found, nodes, strict=True)) for n in range(4)],
                               [(0.6 ** (n + 1) - 1) / (n + 1) for n in range(4)], rtol=1e-5)


def error(sampler, steps):
    """Of z at log-SNR 4, for data N(0, 0.5^2), whose paths are known: z / sqrt(alpha^2 0.25 + sigma^2) is constant."""
    process = Process()

    def power(level):
        alpha, sigma = VP.alpha_sigma(level)
        return alpha**2 / 4 + sigma**2

    def denoise(z, logsnr):
        alpha, _ = VP.alpha_sigma(logsnr[0])
        return alpha / 4 / power(logsnr[0]) * z

    levels = np.linspace(-3.0, 4.0, steps + 1).astype(np.float32)[:-1]
    z = sample(sampler, denoise, jax.random.split(jax.random.key(0), 1), SHAPE, process, steps, levels=levels,
               initial=jnp.ones(SHAPE), stop=4.0)
    return abs(float(z.ravel()[0]) - float(jnp.sqrt(power(4.0) / power(-3.0))))


@pytest.mark.parametrize("sampler, order", [
    (DPMSolver(), 2), (DPMSolver(order=3), 3), (DPMSolver(predict="eps", solver="heun"), 2), (DEIS(order=3), 3),
    (UniPC(lower_order_final=False), 2), (UniPC(order=3, variant="bh1", lower_order_final=False), 3),
    (LMS(order=3), 3)], ids=str)
def test_the_order_is_reached(sampler, order):
    """Half the step, errors of at most 2^-order or so."""
    coarse, fine = error(sampler, 16), error(sampler, 32)
    assert fine < coarse * 0.5 ** (order - 0.75) + 2e-6
    assert fine < error(DDIM(), 32) / 4


def test_noise_of_the_sde_keeps_the_variance():
    """For data N(0, 1) of variance-preserving paths z stays N(0, 1), of any order."""
    keys, shape = jax.random.split(jax.random.key(0), 512), (512, 1, 1, 4, 4)

    def denoise(z, logsnr):
        return VP.alpha_sigma(logsnr[0])[0] * z

    for sampler in (DPMSolver(sde=True, order=3), DPMSolver(sde=True, predict="eps", order=1)):
        z = jax.jit(lambda keys, sampler=sampler: sample(
            sampler, denoise, keys, shape, Process(), 40, levels=np.linspace(-4, 3, 41).astype(np.float32)[:-1],
            stop=3.0, initial=jax.random.normal(jax.random.key(1), shape)))(keys)
        assert abs(float(jnp.var(z)) - 1) < 0.06 and float(jnp.abs(z - z[0]).max()) > 1


def test_steps_of_no_length_count_for_nothing():
    z = jnp.ones(SHAPE)
    for sampler in (DPMSolver(order=3), UniPC(order=3), DEIS(order=3)):
        memory, level = sampler.memory(z), -2.0
        for i, following in enumerate((-2.0, -1.5, -1.0, -0.5)):
            step = Step(jnp.asarray(i), jnp.float32(level - 1), jnp.float32(level), jnp.float32(following),
                        jnp.asarray(False), 30)
            z, _, memory = sampler.step(lambda z, level: 0.5 * z, z, memory, step, VP, jnp.zeros(SHAPE))
            level = following
        assert np.isfinite(float(z.ravel()[0]))
        z = jnp.ones(SHAPE)


def test_bounds_of_estimates():
    x = jnp.asarray([[[[[-3.0], [0.5], [1.0], [2.0]]]]])
    np.testing.assert_allclose(Threshold(limit=1.5)(x).ravel(), [-1.5, 0.5, 1, 1.5])
    s = float(np.quantile([3, 0.5, 1, 2], 0.6))
    np.testing.assert_allclose(Threshold(ratio=0.6, limit=9.0)(x).ravel(), np.clip(x.ravel(), -s, s) / s, rtol=1e-6)
    np.testing.assert_allclose(Threshold(ratio=0.6, limit=1.2)(x).ravel(), np.clip(x.ravel(), -1.2, 1.2) / 1.2,
                               rtol=1e-6)
    step = Step(jnp.asarray(0), jnp.float32(-2), jnp.float32(-1), jnp.float32(1), jnp.asarray(False), 4)
    z, found, _ = DDIM(threshold=Threshold()).step(lambda z, level: x, 0.3 * x, None, step, VP, x)
    (a, s), (a2, s2) = (VP.alpha_sigma(jnp.float32(level)) for level in (-1, 1))
    np.testing.assert_allclose(z, a2 * jnp.clip(x, -1, 1) + s2 * (0.3 * x - a * x) / s, rtol=1e-5)  # eps as it was
    np.testing.assert_allclose(found, jnp.clip(x, -1, 1))


def test_one_step_of_plms_is_one_of_ddim():
    def denoise(z, logsnr):
        return 0.3 * z

    one, other = (sample(sampler, denoise, jax.random.split(jax.random.key(0), 1), SHAPE, Process(), 1, stop=1.0,
                         levels=np.float32([-2.0])) for sampler in (PNDM(), DDIM()))
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("make, message", [
    (lambda: DPMSolver(order=4), ("DPMSolver.order", "=4")),
    (lambda: LMS(order=5), ("LMS.order", ">= 1", "<= 4")),
    (lambda: UniPC(variant="bh3"), ("UniPC.variant", "='bh3'")),
    (lambda: DPMSolver(solver="euler"), ("DPMSolver.solver", "='euler'")),
    (lambda: DPMSolver(order=3, sde=True, predict="eps"), ("DPMSolver.order",)),
    (lambda: Threshold(ratio=0.0), ("Threshold.ratio",)),
])
def test_refusals(make, message):
    with refused(*message):
        make()
