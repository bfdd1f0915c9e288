"""MagicVideo's layers by hand: attention that is masked before or after its softmax, next to or after that of a frame,
and scale and shift of each frame."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention import Spatial, TemporalCausal, counting
from vdm_jax.attention.after_softmax import attend_masked_after
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.directed import AdaptedConvolution, Directed
from vdm_jax.networks.latent_unet import LATENT_UNET_MAGIC_VIDEO, LATENT_UNET_TUNE_A_VIDEO
from vdm_jax.networks.latent_unet_blocks import Sizes, TokenBlock
from vdm_jax.networks.layers import Convolution
from vdm_jax.parallel.mesh import MeshSpec, make_mesh


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("mask", ["before", "after"])
def test_directed_attention_by_hand(mask, window, filled, normal):
    """Hidden after the softmax, later frames still take their share: the weights that are left sum to less than 1."""
    layer = Attention(heads=2, pattern=TemporalCausal(window=window), joint=False, masked_after=mask == "after")
    x = normal(0, 1, 4, 1, 2, 4)
    params = filled(layer, x)
    q, k, v = (np.asarray(x[0] @ params[name]["kernel"]).reshape(4, 2, 2, 2) for name in ("query", "key", "value"))
    logits = np.einsum("tnkd,snkd->nkts", q, k) / np.sqrt(2)
    seen = np.tril(np.ones((4, 4), bool)) & ~np.tril(np.ones((4, 4), bool), -(window or 4))
    weights = np.exp(logits) * (seen if mask == "before" else 1)
    weights = weights / weights.sum(-1, keepdims=True) * seen
    assert (weights[..., 0, :].sum(-1) < 0.999).all() == (mask == "after")
    out = np.einsum("nkts,snkd->tnkd", weights, v).reshape(1, 4, 1, 2, 4)
    wanted = out @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x), wanted, atol=1e-5)


def test_only_the_share_of_later_frames_is_seen_after_the_softmax(normal):
    """Their values are not, their keys are; before it, neither is."""
    q, k, v = (normal(i, 1, 3, 1, 1, 1, 4) for i in range(3))
    found = attend_masked_after(q, k, v, pattern=TemporalCausal())
    np.testing.assert_array_equal(attend_masked_after(q, k, v.at[:, 2].add(1.0), pattern=TemporalCausal())[:, :2],
                                  found[:, :2])
    assert np.abs(attend_masked_after(q, k.at[:, 2].add(1.0), v, pattern=TemporalCausal()) - found)[:, :2].min() > 1e-6
    with counting.counted() as calls:
        jax.eval_shape(lambda: attend_masked_after(q, k, v, pattern=TemporalCausal()))
    assert calls[0].flops == 4 * 3 * 3 * 4  # of every pair of frames


def test_scale_and_shift_of_each_frame_by_hand(filled, normal):
    """On frames split over devices too; at first the convolution alone, whose parameters have the same names."""
    layer, x = AdaptedConvolution(5, frames=4), normal(0, 1, 4, 3, 2, 3)
    params = filled(layer, x)
    own = {name: params[name] for name in ("kernel", "bias")}
    convolved = np.asarray(Convolution(5).apply({"params": own}, x))
    wanted = np.stack([params["frame_scale"][i] * convolved[:, i] + params["frame_shift"][i] for i in range(4)], axis=1)
    np.testing.assert_allclose(layer.apply({"params": params}, x), wanted, atol=1e-5)
    with jax.set_mesh(make_mesh(MeshSpec(data=1, context=2), jax.devices()[:2])):
        np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x), wanted, atol=1e-5)
    begun = layer.init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(layer.apply({"params": {**begun, **own}}, x), convolved)
    with refused("directed.AdaptedConvolution.__call__", "3 frames", "permitted: 4"):
        layer.apply({"params": params}, x[:, :3])


@pytest.mark.parametrize("parallel", [True, False])
def test_temporal_attention_is_next_to_or_after_spatial_attention(parallel, filled, normal):
    sizes = Sizes(2, False, False, "xla", jnp.float32, temporal_pattern=TemporalCausal(),
                  directed=Directed(frames=3, mask="after", parallel=parallel))
    block, x, tokens = TokenBlock(2, sizes), normal(0, 1, 3, 1, 2, 4), normal(1, 1, 1, 2, 4)
    params = filled(block, x, tokens)
    params = {name: jax.tree.map(lambda a: 0 * a, leaf) if name in ("cross_attention", "feed_forward_1") else leaf
              for name, leaf in params.items()}  # what comes after adds nothing

    def normed(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * params[f"norm_{name}"]["scale"] + params[f"norm_{name}"]["bias"]

    def attended(name, x):
        pattern, after = (TemporalCausal(), True) if name == "temporal_attention" else (Spatial(), False)
        layer = Attention(heads=2, pattern=pattern, joint=False, kernel="xla", masked_after=after)
        return layer.apply({"params": params[name]}, x)

    spatial = attended("self_attention", normed("attention", x))
    seen = normed("attention", x) if parallel else normed("temporal_attention", x + spatial)
    wanted = x + spatial + attended("temporal_attention", seen)
    np.testing.assert_allclose(block.apply({"params": params}, x, tokens), wanted, atol=1e-5)
    assert ("norm_temporal_attention" in params) != parallel


@pytest.mark.parametrize("make, message", [
    (lambda: dataclasses.replace(LATENT_UNET_TUNE_A_VIDEO, directed=Directed()), ("LatentUNet", "directed=")),
    (lambda: dataclasses.replace(LATENT_UNET_MAGIC_VIDEO, directed=Directed(mask="after"), attention_kernel="chunked"),
     ("after_softmax.check_masked_after", "'chunked'", "permitted: ")),
    (lambda: dataclasses.replace(LATENT_UNET_MAGIC_VIDEO, directed=Directed(mask="after"), temporal_pattern=Spatial()),
     ("after_softmax.check_masked_after", "Spatial")),
    (lambda: Directed(mask="none"), ("Directed.mask", "'none'")),
    (lambda: attend_masked_after(*[jnp.zeros((1, 2, 1, 1, 1, 2))] * 3, pattern=TemporalCausal(), bias=jnp.zeros(())),
     ("after_softmax.attend_masked_after", "bias")),
])
def test_refused(make, message):
    with refused(*message):
        make()
