"""Layers split over the mesh axis `tensor`: one sum of tokens per pair of layers, and no token gathered."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.attention.patterns import Spatial
from vdm_jax.networks import config as cfg
from vdm_jax.networks.inflation_blocks import ConvolutionInflationLayer
from vdm_jax.networks.mixers import CrossAttentionLayer, FeedForwardLayer, SelfAttentionLayer
from vdm_jax.networks.unet import ResidualBlock
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import parameter_shardings

COMMON = (4, "frame", jnp.float32)
X = (4, 2, 8, 8, 16)  # B T H W C; a device holds one clip, 8,192 bytes of each 16 channels
TEXT = (jnp.ones((4, 1, 3, 12)), jnp.ones((4, 1, 3), bool))
UNET = cfg.UNet(levels=(cfg.Level(channels=16),), groups=4, embedding_channels=8)
LAYERS = {
    "mixers/spatial_attention_0": (SelfAttentionLayer(
        cfg.SelfAttention(pattern=Spatial(), head_dim=8, kernel="xla"), *COMMON), (None,)),
    "mixers/cross_attention_0": (CrossAttentionLayer(cfg.CrossAttention(head_dim=8), *COMMON), TEXT),
    "mixers/feed_forward_0": (FeedForwardLayer(cfg.FeedForward(expansion=2), *COMMON), ()),
    "mixers/convolution_inflation_0": (
        ConvolutionInflationLayer(cfg.ConvolutionInflation(), *COMMON), (0,)),
    "residual": (ResidualBlock(UNET, 16, 3, 0.0), (jnp.ones((4, 1, 8)), False)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_pair_of_layers_sums_tokens_once(name, filled, normal):
    layer, rest = LAYERS[name]
    x = normal(0, *X)
    params = filled(layer, x, *rest)
    mesh = make_mesh(MeshSpec(data=4, tensor=2))
    nested = params
    for part in reversed(("down_0_0", *name.split("/"))):
        nested = {part: nested}
    shardings = parameter_shardings(nested, mesh)
    for part in ("down_0_0", *name.split("/")):
        shardings = shardings[part]
    assert sum("tensor" in jax.tree.leaves(tuple(s.spec)) for s in jax.tree.leaves(shardings)) >= 2
    rows = NamedSharding(mesh, P("data"))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda p, x: layer.apply({"params": p}, x, *rest), in_shardings=(shardings, rows),
                      out_shardings=rows).lower(params, x).compile()
    got = run(jax.device_put(params, shardings), jax.device_put(x, rows))
    np.testing.assert_allclose(got, layer.apply({"params": params}, x, *rest), atol=2e-5)
    text = run.as_text()
    tokens = 2 * 8 * 8
    sums = [size for size in _sizes("all-reduce", text) if size >= tokens * 16]
    assert sums == [tokens * 16]  # the second layer's output
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert max(_sizes(kind, text), default=0) < tokens * 8, kind  # weights and statistics only


def _sizes(kind: str, text: str) -> list[int]:
    """Numbers of values that the collectives of a kind give on a device."""
    shapes = re.findall(rf"= \(?\w+\[([\d,]*)\]\S* {kind}(?:-start)?\(", text)
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
