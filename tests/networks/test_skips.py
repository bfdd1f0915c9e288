"""The features inside a skip connection: given back to the network they change nothing, and save what is inside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.caching import keeping
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.skips import Deep
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.planning.flops import count

LEVELS = (Level(channels=4, blocks=1), Level(channels=8, blocks=1))
NETWORKS = {
    "after": (UNet(levels=LEVELS, embedding_channels=8, groups=2), 4),
    "before": (UNet(levels=(*LEVELS, LEVELS[1]), embedding_channels=8, groups=2, resample_order="before"), 2),
    "latent": (LatentNetwork(unet=LatentUNet(widths=(4, 8), blocks=1, attention=(False, False), heads=(2, 2), groups=2,
                                             only_cross_attention=(False, False), token_channels=4)), 4)}


@pytest.mark.parametrize("name", NETWORKS)
def test_features_inside_a_skip_connection_are_all_that_is_inside(name):
    network, skips = NETWORKS[name]
    assert network.skips == skips
    module, channels = network_module(network), network.out_channels
    z, level = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 8, 8, channels)), jnp.float32), jnp.zeros(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), z, level))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)

    def applied(z, **options):
        return module.apply({"params": params}, z, level, **options)

    def reusing(z, features, branch):
        return applied(z, deep=Deep(branch, lambda make: features))

    @jax.jit
    def estimates(z):
        found = [keeping(lambda through, b=b: applied(z, deep=Deep(b, through))) for b in (0, skips - 1)]
        (whole, outer), (same, inner) = found
        return applied(z), whole, same, reusing(z, outer, 0), reusing(z, inner, skips - 1), reusing(2 * z, outer, 0)

    plain, *equal, other = estimates(z)
    for estimate in equal:
        np.testing.assert_allclose(estimate, plain, rtol=1e-5, atol=1e-5)
    assert np.abs(other - plain).max() > 1e-3  # what is outside is computed
    work = [sum(count(jax.make_jaxpr(applied)(z).jaxpr))]
    for branch in reversed(range(skips)):
        features = jax.eval_shape(lambda b=branch: keeping(lambda through: applied(z, deep=Deep(b, through)))[1])
        work.append(sum(count(jax.make_jaxpr(lambda z, f, b=branch: reusing(z, f, b))(z, features).jaxpr)))
    assert all(less < more for more, less in zip(work, work[1:], strict=False))
    assert work[-1] < 0.7 * work[0]


def test_networks_say_how_many_they_have():
    assert VideoTransformer(width=8, heads=2, hidden=16, layers=3).skips == 3  # blocks
    assert UNet(levels=LEVELS[:1], resample_order="before").skips == 0
