"""Patch discriminators: what they see of frames, and their loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.refusals import refused
from vdm_jax.networks.discriminator import Discriminator, PatchDiscriminator, hinge_loss


def test_only_a_3d_discriminator_sees_the_order_of_frames(filled, normal):
    video = normal(0, 2, 4, 16, 16, 3)
    other = video[:, jnp.array([2, 0, 3, 1])]
    for frames, sees in ((1, False), (3, True)):
        module = PatchDiscriminator(Discriminator(frames=frames, width=4, layers=2))
        params = filled(module, video)
        score = jax.jit(lambda x, module=module, params=params: module.apply({"params": params}, x))
        assert score(video).shape == (2, 4, 4, 4, 1)
        difference = float(jnp.abs(score(video).mean() - score(other).mean()))
        assert difference > 1e-3 if sees else difference < 1e-5


def test_the_published_sizes():
    """Three layers that halve and one that does not, of 64 to 512 channels, and one to a single score, as in latent
    diffusion (whose layers before norms have no bias)."""
    params = jax.eval_shape(lambda: PatchDiscriminator(Discriminator()).init(
        jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3))))["params"]
    kernels = [3 * 64, 64 * 128, 128 * 256, 256 * 512, 512]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 16 * sum(kernels) + 64 + 3 * (128 + 256 + 512) + 1


def test_hinge():
    assert float(hinge_loss(jnp.array([2.0, 0.0]), jnp.array([-3.0, 1.0]))) == 0.5 * (0.5 + 1.0)
    np.testing.assert_allclose(jax.grad(lambda real: hinge_loss(real, jnp.zeros(2)))(jnp.array([2.0, 0.0])), [0, -0.25])


def test_refusals():
    with refused("Discriminator.frames", "=2"):
        Discriminator(frames=2)
