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
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.feed_forward import FeedForward
from vdm_jax.networks.blocks.temporal import TemporalConvolutions, TemporalTransformer
from vdm_jax.networks.latent_unet_blocks import BlockInputs, Sizes, TokenTransformer
from vdm_jax.networks.mixers import (
    convolution_inflation,
    cross_attention,
    feed_forward,
    linear_attention,
    self_attention,
)
from vdm_jax.networks.unet import residual_block
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import parameter_axes, parameter_shardings

COMMON = (4, "frame", jnp.float32)
SIZES = Sizes(4, True, False, "xla", jnp.float32)
GIVEN = BlockInputs(jnp.ones((4, 1, 8)), jnp.ones((4, 1, 3, 12)))
X = (4, 2, 8, 8, 16)  # B T H W C; a device holds one clip, 8,192 bytes of each 16 channels
TEXT = (jnp.ones((4, 1, 3, 12)), jnp.ones((4, 1, 3), bool))
UNET = cfg.UNet(levels=(cfg.Level(channels=16),), groups=4, embedding_channels=8)
LAYERS = {
    "mixers/spatial_attention_0": (self_attention(
        cfg.SelfAttention(pattern=Spatial(), head_dim=8, kernel="xla"), *COMMON), (None,)),
    "mixers/cross_attention_0": (cross_attention(cfg.CrossAttention(head_dim=8), *COMMON), (None, TEXT)),
    "mixers/linear_attention_0": (linear_attention(cfg.LinearAttention(head_dim=8), *COMMON), (None,)),
    "mixers/feed_forward_0": (feed_forward(cfg.FeedForward(expansion=2), *COMMON), ()),
    "mixers/convolution_inflation_0": (
        convolution_inflation(cfg.ConvolutionInflation(), *COMMON), (0,)),
    "residual": (residual_block(UNET, 16, 3, 0.0), (jnp.ones((4, 1, 8)), False)),
}

# Layers of open latent networks on tensor=4, and how often tokens are summed: once for each attention and feed-forward.
# Vectors, of noise levels and frame numbers, are summed in addition.
OPEN_LAYERS = {
    "feed_forward_0": (FeedForward(activation="gelu", gate="joint"), (), 1),
    "space_attention": (Attention(heads=4, joint=False, kernel="xla"), (), 1),
    "down_0_0_transformer": (TokenTransformer(4, SIZES._replace(temporal=False)), (GIVEN,), 3),
    "middle_transformer": (TokenTransformer(4, SIZES), (GIVEN,), 7),
    "down_0_0_frames": (TemporalConvolutions(4, groups=4), (), 2),
    "down_0_1_frames": (TemporalConvolutions(5, spatial=True, replicate=True, groups=4), (), 3),  # the last one alone
    "middle_motion": (TemporalTransformer(4, 4, 4, kernel="xla"), (), 3),
}


@pytest.mark.parametrize("name", list(OPEN_LAYERS))
def test_open_layers_sum_tokens_once_per_pair(name, filled, normal):
    layer, rest, pairs = OPEN_LAYERS[name]
    x = normal(0, *X)
    params = filled(layer, x, *rest)
    mesh = make_mesh(MeshSpec(data=2, tensor=4))
    shardings, rows = parameter_shardings({name: params}, mesh)[name], NamedSharding(mesh, P("data"))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda p, x: layer.apply({"params": p}, x, *rest), in_shardings=(shardings, rows),
                      out_shardings=rows).lower(params, x).compile()
    got = run(jax.device_put(params, shardings), jax.device_put(x, rows))
    np.testing.assert_allclose(got, layer.apply({"params": params}, x, *rest), atol=2e-5)
    text, tokens = run.as_text(), 2 * X[1] * X[2] * X[3]  # of a device's two clips
    sums = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)  # several arrays may be summed in one
    shapes = [shape for one in sums for shape in re.findall(r"f32\[([\d,]+)\]", one)]
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]
    assert sum(size >= tokens for size in sizes) == pairs
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert max(_sizes(kind, text), default=0) < tokens * 8, kind  # kernels only


def test_second_layers_split_what_comes_in():
    for name in ("/level_out", "/scalars_out", "/middle_transformer/places_out",
                 "/down_0_0/temporal_residual/conv_out", "/middle_transformer/time/feed_forward_0/out"):
        assert parameter_axes(f"{name}/kernel", 2) == ("mlp", "embed"), name


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
