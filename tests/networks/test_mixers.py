"""The inflation blocks of Lumiere: nothing at first, who sees whom, images and padding, FLOPs."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.counting import counted
from vdm_jax.attention.linear import linear_attend
from vdm_jax.attention.patterns import Causal, Spatial, Temporal, TemporalCausal, WithExtraKeys, independent_frames_mask
from vdm_jax.attention.positions import rotary
from vdm_jax.networks import config as cfg
from vdm_jax.networks.blocks.positions import HeadNorm
from vdm_jax.networks.layers import GroupNorm
from vdm_jax.networks.mixers import AttentionInflationLayer, convolution_inflation, linear_attention, self_attention
from vdm_jax.planning.flops import count

COMMON = (4, "frame", jnp.float32)
CONVOLUTION = convolution_inflation(cfg.ConvolutionInflation(), *COMMON)
ATTENTION = AttentionInflationLayer(cfg.AttentionInflation(attention=cfg.SelfAttention(
    pattern=Temporal(), head_dim=4, position="relative", kernel="xla")), *COMMON)
FRAMES, SIZE = 5, 4


def call(layer, params, x, images=0, frame_valid=None):
    if layer is CONVOLUTION:
        return layer.apply({"params": params}, x, images, frame_valid)
    mask = independent_frames_mask(x.shape[1] - images, images) if images else None
    return layer.apply({"params": params}, x, mask, frame_valid)


@pytest.mark.parametrize("layer", [CONVOLUTION, ATTENTION], ids=["convolution", "attention"])
def test_a_fresh_block_is_the_identity_and_its_projection_learns(layer, normal):
    x = normal(0, 1, FRAMES, SIZE, SIZE, 8)
    out, variables = layer.init_with_output(jax.random.key(0), x, 0 if layer is CONVOLUTION else None)
    np.testing.assert_array_equal(out, x)
    zero = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
            if path[-1].key == "kernel" and not np.any(leaf)}
    assert zero == {"['out']['kernel']"}  # all layers before it are at work, so its gradient is not zero
    gradient = jax.grad(lambda p: call(layer, p, x).sum())(variables["params"])
    assert np.abs(gradient["out"]["kernel"]).max() > 0.1


def test_a_convolution_sees_its_neighbourhood_of_space_and_time(filled, normal):
    x = normal(0, 1, FRAMES, SIZE, SIZE, 8)
    params = filled(CONVOLUTION, x, 0)
    gradient = jax.grad(lambda x: (call(CONVOLUTION, params, x) - x)[0, 2, 1, 1].sum())(x)
    by_frame = np.abs(gradient).max((0, 2, 3, 4)) > 1e-5
    assert by_frame.tolist() == [False, True, True, True, False]
    shapes = [params[name]["kernel"].shape for name in ("spatial", "temporal")]
    assert shapes == [(1, 3, 3, 8, 8), (3, 1, 1, 8, 8)]


def test_attention_layers_follow_each_other(filled, normal):
    """Two layers of a causal pattern, then the projection of the normalised result, by hand from the parts."""
    inner = cfg.SelfAttention(pattern=TemporalCausal(), head_dim=4, position="none", kernel="xla")
    layer = AttentionInflationLayer(cfg.AttentionInflation(attention=inner, layers=2), *COMMON)
    x = normal(0, 1, FRAMES, 2, 2, 8)
    params = filled(layer, x, None)
    assert set(params) == {"temporal_attention_0", "temporal_attention_1", "norm", "out"}
    h = x
    for i in range(2):
        h = self_attention(inner, *COMMON).apply({"params": params[f"temporal_attention_{i}"]}, h, None)
    h = GroupNorm(4, "frame").apply({"params": params["norm"]}, h)
    expected = x + h @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x, None), expected, atol=1e-5)


@pytest.mark.parametrize("layer", [CONVOLUTION, ATTENTION], ids=["convolution", "attention"])
def test_images_and_padding_are_not_seen(layer, filled, normal):
    x = normal(0, 1, FRAMES, SIZE, SIZE, 8)
    params = filled(layer, x, 0 if layer is CONVOLUTION else None)
    alone = call(layer, params, x)
    longer = jnp.concatenate([x, normal(1, 1, 2, SIZE, SIZE, 8)], axis=1)
    assert np.abs(call(layer, params, longer)[:, :FRAMES] - alone).max() > 1e-3
    np.testing.assert_allclose(call(layer, params, longer, images=2)[:, :FRAMES], alone, atol=1e-5)
    valid = (jnp.arange(FRAMES + 2) < FRAMES)[None]
    np.testing.assert_allclose(call(layer, params, longer, frame_valid=valid)[:, :FRAMES], alone, atol=1e-5)


def test_flops_of_both_blocks_are_counted(filled, normal):
    x = normal(0, 1, FRAMES, SIZE, SIZE, 8)
    tokens = FRAMES * SIZE * SIZE
    params = filled(CONVOLUTION, x, 0)
    dense, convolution = count(jax.make_jaxpr(lambda x: call(CONVOLUTION, params, x))(x).jaxpr)
    assert (dense, convolution) == (2 * tokens * 8 * 8, 2 * tokens * (9 + 3) * 8 * 8)
    params = filled(ATTENTION, x, None)
    with counted() as calls:
        dense, _ = count(jax.make_jaxpr(lambda x: call(ATTENTION, params, x))(x).jaxpr)
    assert dense == 2 * tokens * (2 * (3 + 1) + 1) * 8 * 8
    assert [c.flops for c in calls] == [2 * 2 * tokens * FRAMES * 8] * 2


def test_linear_attention_is_its_parts_and_begins_as_the_identity(filled, normal):
    """By hand from the projections; a frame of a causal clip does not see later ones."""
    layer = linear_attention(cfg.LinearAttention(pattern=Causal(), head_dim=8), *COMMON)
    x = normal(0, 1, FRAMES, 2, 3, 8)
    fresh, _ = layer.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(fresh, x)
    params = filled(layer, x)
    assert set(params) == {"norm", "qkv", "query_norm", "key_norm", "out"}
    h = GroupNorm(4, "frame").apply({"params": params["norm"]}, x)
    q, k, v = jnp.moveaxis((h @ params["qkv"]["kernel"]).reshape(1, FRAMES, 2, 3, 3, 1, 8), 4, 0)
    q, k = (HeadNorm().apply({"params": params[f"{part}_norm"]}, a) for part, a in (("query", q), ("key", k)))
    found = linear_attend(q, k, v, pattern=Causal(), turn=partial(rotary, axes="thw")).reshape(x.shape)
    expected = x + found @ params["out"]["kernel"] + params["out"]["bias"]
    got = layer.apply({"params": params}, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    changed = layer.apply({"params": params}, x.at[:, 3, ..., 0].add(1.0))
    np.testing.assert_allclose(changed[:, :3], got[:, :3], atol=1e-6)
    assert np.abs(changed[:, 4:] - got[:, 4:]).max() > 1e-3


@pytest.mark.parametrize(("make", "message"), [
    (lambda: cfg.LinearAttention(pattern=Temporal()), ("LinearAttention.pattern", "Full")),
    (lambda: cfg.ConvolutionInflation(kernel=2), ("ConvolutionInflation.kernel", "=2")),
    (lambda: cfg.ConvolutionInflation(temporal_kernel=0), ("ConvolutionInflation.temporal_kernel", "=0")),
    (lambda: cfg.AttentionInflation(layers=0), ("AttentionInflation.layers", "=0", ">= 1")),
    (lambda: cfg.AttentionInflation(attention=cfg.SelfAttention(pattern=Spatial())),
     ("AttentionInflation.attention.pattern", "=Spatial(")),
    (lambda: cfg.AttentionInflation(attention=cfg.SelfAttention(pattern=WithExtraKeys(inner=Temporal()))),
     ("AttentionInflation.attention.pattern", "=WithExtraKeys")),
    (lambda: cfg.Level(channels=48, mixers=(cfg.AttentionInflation(),)),
     ("AttentionInflation.head_dim", "=32", "Level.channels=48")),
])
def test_blocks_that_cannot_be(make, message):
    with refused(*message):
        make()
