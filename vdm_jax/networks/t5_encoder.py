"""The encoder of T5 version 1.1 (Raffel et al. 2020, arXiv 1910.10683; gated feed-forward: Shazeer 2020, 2002.05202).

The text encoder of Imagen (XXL) and of many video models. No biases, root-mean-square norms, logits that are not
scaled, and positions as a bias per bucket of offsets that all layers share.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.attention.positions import bucket_index
from vdm_jax.configuration import Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.clip_layers import ACTIVATIONS, Activation, EncoderAttention
from vdm_jax.networks.layers import Dense


@config
class T5Encoder:
    """Sizes of a T5 encoder; the defaults are those of version 1.1, base."""

    vocabulary: Width = 32128  # tokens
    width: Size = 768  # channels
    layers: int = 12
    heads: Size = 12
    head_dim: Size = 64  # channels of a head; heads need not fill the width
    hidden: int = 2048  # channels inside the feed-forward layers
    activation: Activation = "gelu_new"  # of the gate, or of the hidden channels where there is none
    gated: bool = True  # version 1.1; the first version has no gate
    buckets: int = 32  # of offsets between tokens
    bucket_distance: int = 128  # tokens; further offsets share the last bucket of their side
    epsilon: float = 1e-6  # of the norms
    dtype: str = "float32"  # of the projections; norms and the residual stream are float32, which the weights need

    def __post_init__(self):
        sizes = (self.vocabulary, self.width, self.layers, self.heads, self.head_dim, self.hidden)
        if min(sizes) < 1 or self.buckets < 4 or self.activation not in ACTIVATIONS:
            raise UserError(f"T5Encoder sizes {sizes} with buckets={self.buckets}, activation={self.activation!r}; "
                            f"permitted: positive, 4 or more buckets, {', '.join(ACTIVATIONS)}")


T5_SMALL = T5Encoder(width=512, layers=8, heads=6, hidden=1024)
T5_BASE = T5Encoder()
T5_LARGE = T5Encoder(width=1024, layers=24, heads=16, hidden=2816)
T5_XL = T5Encoder(width=2048, layers=24, heads=32, hidden=5120)
T5_XXL = T5Encoder(width=4096, layers=24, heads=64, hidden=10240)


class RMSNorm(nn.Module):
    """Division by the root of the mean square, then a learned scale; float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * scale


class T5FeedForward(nn.Module):
    """`out(act(gate(x)) * expand(x))`, or `out(act(expand(x)))` without a gate."""

    config: T5Encoder

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        spec, act = self.config, ACTIVATIONS[self.config.activation]
        options = {"use_bias": False, "dtype": jnp.dtype(spec.dtype)}
        h = Dense(spec.hidden, name="expand", **options)(x)
        h = act(Dense(spec.hidden, name="gate", **options)(x)) * h if spec.gated else act(h)
        return Dense(x.shape[-1], name="out", **options)(h)


class T5TextEncoder(nn.Module):
    """Token ids `[B, L]` and their mask (True: a token of the text, None: all) to `[B, L, C]`, float32.

    Padding is not seen; what is returned in its places has no meaning.
    """

    config: T5Encoder

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None) -> Float[Array, "B L C"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        table = self.param("words", nn.initializers.normal(1.0), (spec.vocabulary, spec.width))
        offsets = self.param("offsets", nn.initializers.normal(0.02), (spec.buckets, spec.heads))
        index = bucket_index(tokens.shape[1], spec.buckets, spec.bucket_distance)
        bias = jnp.moveaxis(offsets[index], -1, 0)  # [K, L, L]
        seen = None if mask is None else mask[:, None, None, :]
        x = table[tokens].astype(jnp.float32)
        for i in range(spec.layers):
            attention = EncoderAttention(spec.heads * spec.head_dim, spec.heads, False, dtype,
                                         name=f"layer_{i}_self_attention")
            x = x + attention(RMSNorm(spec.epsilon, name=f"layer_{i}_norm_attention")(x), seen, bias, scaled=False)
            h = RMSNorm(spec.epsilon, name=f"layer_{i}_norm_feed_forward")(x)
            x = x + T5FeedForward(spec, name=f"layer_{i}_feed_forward")(h)
        return RMSNorm(spec.epsilon, name="norm")(x)
