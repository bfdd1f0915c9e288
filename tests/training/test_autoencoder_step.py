"""Losses of autoencoders against direct computation, and when the discriminator joins."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny_autoencoder import LOSS, NETWORK, stage, without_discriminators
from vdm_jax.networks.autoencoders.kl import AutoencoderKL, Moments
from vdm_jax.networks.discriminator import Discriminator
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.inputs import target_video
from vdm_jax.training.autoencoder_step import (
    adversarial_loss,
    autoencoder_gradients,
    autoencoder_step,
    compile_autoencoder_step,
    discriminator_loss,
    divergence_per_frame,
    psnr,
    reconstruction_loss,
)
from vdm_jax.training.state import create_state, initial_state

STAGE = stage()


def clips(seed=0, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, 4, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda key: initial_state(STAGE, key))(jax.random.key(0))


def test_the_divergence_is_the_integral():
    """KL(N(m, s^2) || N(0, 1)) by quadrature."""
    x = np.linspace(-30, 30, 600_001)
    for mean, logvar in ((0.0, 0.0), (1.5, -1.0), (-0.3, 1.2)):
        deviation = math.exp(logvar / 2)
        logp = -0.5 * ((x - mean) / deviation) ** 2 - math.log(deviation)
        density = np.exp(logp) / math.sqrt(2 * math.pi)
        expected = (density * (logp + 0.5 * x**2)).sum() * (x[1] - x[0])
        found = Moments(jnp.array(mean), jnp.array(logvar)).divergence()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_losses_are_sums_over_a_frame():
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-1, 1, (2, 3, 4, 5, 3)).astype(np.float32) for _ in range(2))
    loss, scalars = reconstruction_loss(without_discriminators(), x, y, jnp.float32(0.3), None)
    expected = (np.abs(x - y) / math.exp(0.3) + 0.3).sum() / 6
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(scalars["psnr"], (10 * np.log10(4 / ((x - y) ** 2).mean((2, 3, 4)))).mean(), rtol=1e-5)
    squared = dataclasses.replace(without_discriminators(), reconstruction="l2")
    np.testing.assert_allclose(reconstruction_loss(squared, x, y, jnp.float32(0), None)[0], ((x - y) ** 2).sum() / 6,
                               rtol=1e-5)
    assert float(psnr(x, x).min()) > 100
    moments = Moments(jnp.full((2, 3, 2, 2, 2), 2.0), jnp.zeros((2, 3, 2, 2, 2)))
    np.testing.assert_allclose(divergence_per_frame(moments, 3), 0.5 * 4 * 8, rtol=1e-6)


def test_gradients_and_the_adaptive_weight_are_those_of_direct_computation(state):
    """The weight is the ratio of the norms of two gradients at the last kernel; the gradients are those of the sum of
    the losses with that weight held."""
    x = target_video(jnp.asarray(clips()), STAGE.video)
    key = jax.random.key(5)
    # Fresh discriminators have gradients so small that the weight is at its limit.
    state = state.replace(params={**state.params, "discriminators": jax.tree.map(
        lambda p: 5 * p, state.params["discriminators"])})
    loss, scalars, grads, judges = jax.jit(lambda params: autoencoder_gradients(
        STAGE, params, x, key, None, adversarial=True))(state.params)
    module = AutoencoderKL(NETWORK)

    def parts(params):
        moments = module.apply({"params": params}, x, method="encode")
        y = module.apply({"params": params}, moments.sample(jax.random.normal(key, moments.mean.shape)),
                         method="decode")
        nll, _ = reconstruction_loss(LOSS, x, y, state.params["logvar"], None)
        return nll, adversarial_loss(LOSS, state.params["discriminators"], y), divergence_per_frame(moments, 2), y

    params = state.params["autoencoder"]
    one, other = jax.jit(lambda p: [jax.grad(lambda p, i=i: parts(p)[i])(p) for i in (0, 1)])(params)
    norm = lambda tree: np.linalg.norm(tree["decoder"]["out"]["kernel"])
    weight = LOSS.discriminator_weight * norm(one) / (norm(other) + 1e-4)
    np.testing.assert_allclose(scalars["adaptive_weight"], weight, rtol=1e-4)

    def total(p):
        nll, adversarial, kl, y = parts(p)
        return nll + weight * adversarial + LOSS.kl_weight * kl, y

    (expected, y), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * float(jnp.abs(b).max()) + 1e-6)
    jax.tree.map(compare, grads["autoencoder"], gradients)
    of_judges = jax.jit(jax.grad(lambda d: discriminator_loss(LOSS, d, x, y)))(state.params["discriminators"])
    jax.tree.map(compare, judges, of_judges)


def test_the_discriminator_joins_at_its_step():
    mesh = make_mesh(MeshSpec())
    spec = stage(loss=dataclasses.replace(LOSS, discriminator_start=1))
    state, step = create_state(spec, 0, mesh), compile_autoencoder_step(spec, mesh, None)
    start = jax.device_get(state.params["discriminators"])
    same = lambda state: all(jax.tree.leaves(jax.tree.map(
        np.array_equal, start, jax.device_get(state.params["discriminators"]))))
    state, metrics = step(1, state, clips())
    assert same(state) and float(metrics["adaptive_weight"]) == float(metrics["discriminator"]) == 0
    state, metrics = step(2, state, clips(1))
    assert not same(state) and float(metrics["adaptive_weight"]) > 0 and float(metrics["discriminator"]) > 0


def test_what_is_frozen_stays_and_what_is_learned_moves(state):
    """Fine-tuning of a decoder, with a learned log-variance."""
    spec = stage(loss=dataclasses.replace(without_discriminators(), learned_logvar=True), trainable=("/decoder/",))
    begun = jax.jit(lambda key: initial_state(spec, key))(jax.random.key(0))
    new, metrics = jax.jit(lambda s, v: autoencoder_step(spec, s, v, None, adversarial=False))(begun, clips())
    changed = {name: any(jax.tree.leaves(jax.tree.map(
        lambda a, b: not np.array_equal(a, b), new.params["autoencoder"][name], begun.params["autoencoder"][name])))
        for name in begun.params["autoencoder"]}
    assert changed == {"encoder": False, "decoder": True, "quant": False, "post_quant": False}
    assert float(new.params["logvar"]) != float(begun.params["logvar"])
    assert int(new.step) == 1 and float(metrics["skipped"]) == 0
    broken = begun.replace(params={**begun.params, "logvar": jnp.float32(jnp.nan)})
    kept, metrics = jax.jit(lambda s, v: autoencoder_step(spec, s, v, None, adversarial=False))(broken, clips())
    assert float(metrics["skipped"]) == 1 and int(kept.step) == 1
    jax.tree.map(np.testing.assert_array_equal, kept.ema, begun.ema)


@pytest.mark.full
def test_several_discriminators_weigh_the_same():
    two = dataclasses.replace(LOSS, discriminators=(LOSS.discriminators[0], Discriminator(frames=3, width=4, layers=1)))
    begun = jax.jit(lambda key: initial_state(stage(loss=two), key))(jax.random.key(0))
    x = target_video(jnp.asarray(clips(size=2)), STAGE.video)
    alone = [adversarial_loss(dataclasses.replace(two, discriminators=(d,)),
                              {"0": begun.params["discriminators"][str(i)]}, x)
             for i, d in enumerate(two.discriminators)]
    np.testing.assert_allclose(adversarial_loss(two, begun.params["discriminators"], x), np.mean(alone), rtol=1e-5)
