"""Blocks of the U-Nets of open latent models: residual blocks and transformers over space, and over time.

The layers of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752) and, between them, those of Stable Video
Diffusion (Blattmann et al. 2023, arXiv 2311.15127). In both mixes a learned share is that of the spatial layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import Spatial, Temporal, attend
from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.networks.autoencoder_blocks import Mix, ResidualBlock
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, silu

TOKEN_EPSILON = 1e-6  # of the norm before a transformer


class Given(NamedTuple):
    """What the blocks see beside the video."""

    embedding: Float[Array, "b e"]  # of noise level, scalars and class
    context: Float[Array, "b g l e"]  # tokens of the text or image, one group for the clip or one per frame
    images: Bool[Array, "b t"] | None  # frames that are independent images


class Control(NamedTuple):
    """What a network beside the U-Net adds to its features."""

    skips: tuple[Float[Array, "b t h w c"], ...]  # in the order of the way down, the first convolution's included
    middle: Float[Array, "b t h w c"]


class Sizes(NamedTuple):
    """What all blocks of a network share."""

    groups: int
    temporal: bool
    convolve_tokens: bool
    kernel: str  # of attention
    dtype: jnp.dtype
    context: str = "none"  # of attention: how it is spread over devices


def level_code(x: Float[Array, "*b"], channels: int) -> Float[Array, "*b c"]:
    """Cosines, then sines, of `x` at periods from 2 pi to almost 20,000 pi."""
    half = channels // 2
    angle = x[..., None].astype(jnp.float32) * jnp.exp(-math.log(10_000) * jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class LatentBlock(nn.Module):
    """A residual block within frames and, in a video network, one over frames of its output, mixed with it."""

    features: int
    sizes: Sizes
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], given: Given) -> Float[Array, "b t h w o"]:
        options = {"groups": self.sizes.groups, "epsilon": self.epsilon, "dtype": self.sizes.dtype}
        x = ResidualBlock(self.features, **options, name="residual")(x, given.embedding)
        if not self.sizes.temporal:
            return x
        over_frames = ResidualBlock(self.features, (3, 1, 1), "clip", **options, name="temporal_residual")
        return Mix("spatial", 0.5, name="mix")(x, over_frames(x, given.embedding), given.images)


class TokenAttention(nn.Module):
    """Attention of the tokens of a video among themselves or to context tokens."""

    heads: int
    sizes: Sizes
    pattern: Spatial | Temporal | None = None  # None: to the context

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], context: Float[Array, "b g l e"] | None = None
    ) -> Float[Array, "b t h w c"]:
        channels, dtype = x.shape[-1], self.sizes.dtype

        def project(tokens: Array, name: str) -> Float[Array, "*b k d"]:
            y = Dense(channels, use_bias=False, dtype=dtype, name=name)(tokens)
            return y.reshape(*tokens.shape[:-1], self.heads, channels // self.heads)

        seen = x if self.pattern is not None else context
        q, k, v = project(x, "query"), project(seen, "key"), project(seen, "value")
        if self.pattern is not None:
            y = attend(q, k, v, pattern=self.pattern, kernel=self.sizes.kernel, context=self.sizes.context)
        else:
            batch, frames, height, width = x.shape[:4]
            y = dense(q.reshape(batch, frames, height * width, *q.shape[4:]), Keys(k, v))
        return Dense(channels, dtype=dtype, name="out")(y.reshape(x.shape))


class GatedFeedForward(nn.Module):
    """`out(value * gelu(gate))` with four times the channels inside, and the exact GELU."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        value, gate = jnp.split(Dense(8 * x.shape[-1], dtype=self.dtype, name="expand")(x), 2, axis=-1)
        return Dense(x.shape[-1], dtype=self.dtype, name="out")(value * jax.nn.gelu(gate, approximate=False))


class TokenBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; over frames, a feed-forward before them too."""

    heads: int
    sizes: Sizes
    over_time: bool = False
    only_context: bool = False  # the first attention sees the context too, in place of the video

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], context: Float[Array, "b g l e"]) -> Float[Array, "b t h w c"]:

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(1e-5, dtype=self.sizes.dtype, name=f"norm_{name}")

        if self.over_time:
            x = x + GatedFeedForward(self.sizes.dtype, name="feed_forward_0")(norm("in")(x))
        pattern = None if self.only_context else Temporal() if self.over_time else Spatial()
        first = TokenAttention(self.heads, self.sizes, pattern, name="self_attention")
        x = x + first(norm("attention")(x), context)
        x = x + TokenAttention(self.heads, self.sizes, name="cross_attention")(norm("context")(x), context)
        return x + GatedFeedForward(self.sizes.dtype, name="feed_forward_1")(norm("feed_forward")(x))


class TokenTransformer(nn.Module):
    """A norm, a pointwise map, a block of attention within frames, and a pointwise map, beside a residual connection.

    In a video network a block over frames follows the one within them and is mixed with it: it sees the number of the
    frame as a learned map of sinusoids, and the context of the first frame.
    """

    heads: int
    sizes: Sizes
    only_context: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], given: Given) -> Float[Array, "b t h w c"]:
        channels, dtype = x.shape[-1], self.sizes.dtype

        def pointwise(name: str) -> nn.Module:
            if self.sizes.convolve_tokens:
                return Convolution(channels, (1, 1, 1), dtype=dtype, name=name)
            return Dense(channels, dtype=dtype, name=name)

        h = pointwise("in")(GroupNorm(self.sizes.groups, epsilon=TOKEN_EPSILON, name="norm")(x))
        h = TokenBlock(self.heads, self.sizes, only_context=self.only_context, name="space")(h, given.context)
        if self.sizes.temporal:
            places = level_code(jnp.arange(x.shape[1]), channels)
            places = silu(Dense(4 * channels, dtype=dtype, name="places_in")(places))
            places = Dense(channels, dtype=dtype, name="places_out")(places)[:, None, None]
            over_frames = TokenBlock(self.heads, self.sizes, over_time=True, name="time")
            h = Mix("spatial", 0.5, name="mix")(h, over_frames(h + places, given.context[:, :1]), given.images)
        return x + pointwise("out")(h)
