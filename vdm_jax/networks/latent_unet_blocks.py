"""Blocks of the U-Nets of open latent models: residual blocks and transformers over space, and over time.

The layers of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752) and, between them, those of Stable Video
Diffusion (Blattmann et al. 2023, arXiv 2311.15127). In both mixes a learned share is that of the spatial layers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import Spatial, Temporal, attend
from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.networks.autoencoder_blocks import Mix, ResidualBlock
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, Initializer, PartedDense, fan_in, silu, zeros
from vdm_jax.networks.positions import RelativeKeys, RelativeValues

TOKEN_EPSILON = 1e-6  # of the norm before a transformer


class Given(NamedTuple):
    """What the blocks see beside the video."""

    embedding: Float[Array, "B E"]  # of noise level, scalars and class
    context: Float[Array, "B G L E"] | None  # tokens of the text or image, one group for the clip or one per frame
    images: Bool[Array, "B T"] | None  # frames that are independent images
    # Known frames and their mask: by level, and in a block those of its level
    known: tuple[Float[Array, "B T H W M"], ...] | Float[Array, "B T H W M"] | None = None
    train: bool = False  # with dropout


class Control(NamedTuple):
    """What a network beside the U-Net adds to its features."""

    skips: tuple[Float[Array, "B T H W C"], ...]  # in the order of the way down, the first convolution's included
    middle: Float[Array, "B T H W C"]


class Sizes(NamedTuple):
    """What all blocks of a network share."""

    groups: int
    temporal: bool
    convolve_tokens: bool
    kernel: str  # of attention
    dtype: jnp.dtype
    context: str = "none"  # of attention over frames: how it is spread over devices
    norm_over: str = "frame"  # statistics of the norms
    film: bool = False  # how the embedding enters residual blocks
    mix_frames: int = 0  # that have a share of their own in mixes; 0: one for all
    offsets: int = 0  # furthest offset that attention over frames tells apart; 0: none of that kind


def beside(
    x: Float[Array, "B T H W C"], change: Float[Array, "B T H W C"], images: Bool[Array, "B T"] | None
) -> Float[Array, "B T H W C"]:
    """`x + change`, and `x` alone in frames that are independent images."""
    return x + (change if images is None else jnp.where(images[:, :, None, None, None], 0, change))


def told(x: Float[Array, "B T H W C"], given: Given, dtype: jnp.dtype) -> Float[Array, "B T H W C"]:
    """What a layer over frames sees: features, and what is known of frames by a map that starts at zero."""
    if given.known is None:
        return x
    return x + Dense(x.shape[-1], kernel_init=zeros, dtype=dtype, name="known")(given.known)


def level_code(x: Float[Array, "*batch"], channels: int) -> Float[Array, "*batch C"]:
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
    def __call__(self, x: Float[Array, "B T H W C"], given: Given) -> Float[Array, "B T H W O"]:
        sizes = self.sizes
        options = {"groups": sizes.groups, "epsilon": self.epsilon, "dtype": sizes.dtype}
        residual = ResidualBlock(self.features, over=sizes.norm_over, film=sizes.film, **options, name="residual")
        x = residual(x, given.embedding)
        if not sizes.temporal:
            return x
        over_frames = ResidualBlock(self.features, (3, 1, 1), "clip", **options, name="temporal_residual")
        y = over_frames(told(x, given, sizes.dtype), given.embedding)
        return Mix("spatial", 0.5, sizes.mix_frames, name="mix")(x, y, given.images)


class TokenAttention(nn.Module):
    """Attention of the tokens of a video among themselves or to context tokens.

    With `offsets`, keys and values have learned vectors of the offset added (Shaw et al. 2018, arXiv 1803.02155);
    further offsets share the last one's.
    """

    heads: int
    sizes: Sizes
    pattern: Spatial | Temporal | None = None  # None: to the context
    offsets: int = 0
    bias: bool = False  # of queries, keys and values
    out_init: Initializer = fan_in

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], context: Float[Array, "B G L E"] | None = None
    ) -> Float[Array, "B T H W C"]:
        channels, dtype = x.shape[-1], self.sizes.dtype

        def project(tokens: Array, name: str) -> Float[Array, "*batch K D"]:
            y = Dense(channels, use_bias=self.bias, dtype=dtype, name=name)(tokens)
            return y.reshape(*tokens.shape[:-1], self.heads, channels // self.heads)

        seen = x if self.pattern is not None else context
        q, k, v = project(x, "query"), project(seen, "key"), project(seen, "value")
        if self.pattern is not None:
            relative = self._relative(q) if self.offsets else {}
            context = self.sizes.context if self.pattern.layout == "positions" else "none"
            y = attend(q, k, v, pattern=self.pattern, kernel=self.sizes.kernel, context=context, **relative)
        else:
            batch, frames, height, width = x.shape[:4]
            y = dense(q.reshape(batch, frames, height * width, *q.shape[4:]), Keys(k, v))
        return Dense(channels, kernel_init=self.out_init, dtype=dtype, name="out")(y.reshape(x.shape))

    def _relative(self, q: Float[Array, "B T H W K D"]) -> dict[str, Any]:
        layout = self.pattern.layout
        return {"bias": RelativeKeys(self.offsets, name="offset_keys")(q, layout),
                "offset_values": RelativeValues(q.shape[-1], self.offsets, name="offset_values")(layout)}


class GatedFeedForward(nn.Module):
    """`out(value * gelu(gate))` with four times the channels inside, and the exact GELU."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        value, gate = PartedDense(2, 4 * x.shape[-1], dtype=self.dtype, name="expand")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="out")(value * jax.nn.gelu(gate, approximate=False))


class TokenBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; over frames, a feed-forward before them too. With
    `Sizes.offsets`, an attention over frames after each attention within (LVDM), which starts as the identity."""

    heads: int
    sizes: Sizes
    over_time: bool = False
    only_context: bool = False  # the first attention sees the context too, in place of the video

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], context: Float[Array, "B G L E"], images: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T H W C"]:

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(1e-5, dtype=self.sizes.dtype, name=f"norm_{name}")

        if self.over_time:
            x = x + GatedFeedForward(self.sizes.dtype, name="feed_forward_0")(norm("in")(x))
        pattern = None if self.only_context else Temporal() if self.over_time else Spatial()
        def over_frames(i: int, x: Array) -> Array:
            if not self.sizes.offsets:
                return x
            attention = TokenAttention(self.heads, self.sizes, Temporal(), self.sizes.offsets, out_init=zeros,
                                       name=f"time_attention_{i}")
            return beside(x, attention(norm(f"time_attention_{i}")(x)), images)

        first = TokenAttention(self.heads, self.sizes, pattern, name="self_attention")
        x = over_frames(0, x + first(norm("attention")(x), context))
        x = x + TokenAttention(self.heads, self.sizes, name="cross_attention")(norm("context")(x), context)
        x = over_frames(1, x)
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
    def __call__(self, x: Float[Array, "B T H W C"], given: Given) -> Float[Array, "B T H W C"]:
        channels, dtype = x.shape[-1], self.sizes.dtype

        def pointwise(name: str) -> nn.Module:
            if self.sizes.convolve_tokens:
                return Convolution(channels, (1, 1, 1), dtype=dtype, name=name)
            return Dense(channels, dtype=dtype, name=name)

        h = pointwise("in")(GroupNorm(self.sizes.groups, self.sizes.norm_over, TOKEN_EPSILON, name="norm")(x))
        within = TokenBlock(self.heads, self.sizes, only_context=self.only_context, name="space")
        h = within(h, given.context, given.images)
        if self.sizes.temporal:
            places = level_code(jnp.arange(x.shape[1]), channels)
            places = silu(Dense(4 * channels, dtype=dtype, name="places_in")(places))
            places = Dense(channels, dtype=dtype, name="places_out")(places)[:, None, None]
            over_frames = TokenBlock(self.heads, self.sizes, over_time=True, name="time")
            y = over_frames(told(h + places, given, dtype), given.context[:, :1])
            h = Mix("spatial", 0.5, self.sizes.mix_frames, name="mix")(h, y, given.images)
        return x + pointwise("out")(h)


class FactorisedAttention(nn.Module):
    """Self-attention within frames, then over frames with offsets, each with a norm before and a residual connection,
    and starting as the identity: the attention of LVDM's networks without text.

    The norm before attention over frames has statistics per position.
    """

    heads: int
    sizes: Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], given: Given) -> Float[Array, "B T H W C"]:
        batch, frames, height, width, channels = x.shape
        options = {"bias": True, "out_init": zeros}
        h = GroupNorm(self.sizes.groups, name="norm_space")(x)
        x = x + TokenAttention(self.heads, self.sizes, Spatial(), **options, name="space_attention")(h)
        h = jnp.moveaxis(x, 1, 3).reshape(-1, frames, 1, 1, channels)
        h = GroupNorm(self.sizes.groups, "clip", name="norm_time")(h)
        h = jnp.moveaxis(h.reshape(batch, height, width, frames, channels), 3, 1)
        y = TokenAttention(self.heads, self.sizes, Temporal(), self.sizes.offsets, **options, name="time_attention")(h)
        return beside(x, y, given.images)
