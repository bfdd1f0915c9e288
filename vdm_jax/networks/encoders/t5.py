"""The encoder of T5 version 1.1 (Raffel et al. 2020, arXiv 1910.10683; gated feed-forward: Shazeer 2020, 2002.05202)
and of UMT5 (Chung et al. 2023, arXiv 2304.09151).

The text encoder of Imagen (XXL) and of many video models; UMT5-XXL is that of Wan. No biases, root-mean-square norms,
logits that are not scaled, and positions as a bias per bucket of offsets, which all layers of T5 share and each layer
of UMT5 has for itself.
"""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.attention import Temporal
from vdm_jax.attention.positions import bucket_index
from vdm_jax.configuration import Count, Depth, Positive, Range, Size, Width, config
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.feed_forward import Activation, FeedForward


@config
class T5Encoder:
    """Sizes of a T5 encoder; the defaults are those of version 1.1, base."""

    vocabulary: Width = 32128  # tokens
    width: Size = 768  # channels
    layers: Depth = 12
    heads: Size = 12
    head_dim: Size = 64  # channels of a head; heads need not fill the width
    hidden: Width = 2048  # channels inside the feed-forward layers
    activation: Activation = "gelu_new"  # of the gate, or of the hidden channels where there is none
    gated: bool = True  # version 1.1; the first version has no gate
    buckets: Annotated[int, Range(least=4, cap=2**16)] = 32  # of offsets between tokens
    bucket_distance: Count = 128  # tokens; further offsets share the last bucket of their side
    offsets_per_layer: bool = False  # biases of the buckets in every layer: UMT5
    epsilon: Positive = 1e-6  # of the norms
    dtype: str = "float32"  # of the projections; norms and the residual stream are float32, which the weights need


T5_SMALL = T5Encoder(width=512, layers=8, heads=6, hidden=1024)
T5_BASE = T5Encoder()
T5_LARGE = T5Encoder(width=1024, layers=24, heads=16, hidden=2816)
T5_XL = T5Encoder(width=2048, layers=24, heads=32, hidden=5120)
T5_XXL = T5Encoder(width=4096, layers=24, heads=64, hidden=10240)
UMT5_XXL = T5Encoder(vocabulary=256384, width=4096, layers=24, heads=64, hidden=10240, offsets_per_layer=True)


class RMSNorm(nn.Module):
    """Division by the root of the mean square, then a learned scale; float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * scale


class T5TextEncoder(nn.Module):
    """Token ids `[B, L]` and their mask (True: a token of the text, None: all) to `[B, L, C]`, float32.

    Padding is not seen; what is returned in its places has no meaning.
    """

    config: T5Encoder

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None) -> Float[Array, "B L C"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        table = self.param("words", nn.initializers.normal(1.0), (spec.vocabulary, spec.width))
        index = bucket_index(tokens.shape[1], spec.buckets, spec.bucket_distance)

        def biases(name: str) -> Float[Array, "K L L"]:
            offsets = self.param(name, nn.initializers.normal(0.02), (spec.buckets, spec.heads))
            return jnp.moveaxis(offsets[index], -1, 0)

        shared = None if spec.offsets_per_layer else biases("offsets")
        x = table[tokens].astype(jnp.float32)
        for i in range(spec.layers):
            attention = Attention(spec.head_dim, spec.heads, Temporal(), joint=False, out_bias=False, scaled=False,
                                  dtype=dtype, name=f"layer_{i}_self_attention")  # tokens stand where frames do
            h = RMSNorm(spec.epsilon, name=f"layer_{i}_norm_attention")(x)
            bias = biases(f"layer_{i}_offsets") if shared is None else shared
            x = x + attention(h, frame_valid=mask, bias=bias)
            h = RMSNorm(spec.epsilon, name=f"layer_{i}_norm_feed_forward")(x)
            x = x + FeedForward(spec.hidden, activation=spec.activation, gate="separate" if spec.gated else "none",
                                use_bias=False, dtype=dtype, name=f"layer_{i}_feed_forward")(h)
        return RMSNorm(spec.epsilon, name="norm")(x)
