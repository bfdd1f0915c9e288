"""Blocks of the U-Nets of open latent models, assembled from those of all networks: residual blocks and transformers
over space, and over time.

The layers of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752) and, between them, those of Stable Video
Diffusion (Blattmann et al. 2023, arXiv 2311.15127). In both mixes a learned share is that of the spatial layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from vdm_jax.attention import AttentionPattern, Spatial, Temporal
from vdm_jax.networks.blocks.attention import Attention, Tokens
from vdm_jax.networks.blocks.feed_forward import FeedForward
from vdm_jax.networks.blocks.residual import ResidualBlock
from vdm_jax.networks.blocks.sinusoids import sinusoids
from vdm_jax.networks.blocks.temporal import (
    LowRankTemporalConvolution,
    Mix,
    TemporalTransformer,
    relative_positions,
)
from vdm_jax.networks.directed import AdaptedConvolution, Directed
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, silu, zeros

TOKEN_EPSILON = 1e-6  # of the norm before a transformer


@flax.struct.dataclass
class BlockInputs:
    """What the blocks see in addition to the video."""

    embedding: Float[Array, "B G E"] | None  # of noise level, scalars and class: one for the clip or one per frame
    tokens: Float[Array, "B G L E"] | None  # tokens of the text or image, one group for the clip or one per frame
    # Conditioning frames and their mask: by level, and in a block those of its level
    conditioning_latents: tuple[Float[Array, "B T H W M"], ...] | Float[Array, "B T H W M"] | None = None
    train: bool = flax.struct.field(pytree_node=False, default=False)  # with dropout
    # Reference tokens of every transformer, and in a block those of its own
    references: dict[str, Float[Array, "B _ _ _"]] | Float[Array, "B _ _ _"] | None = None
    reference_seen: Bool[Array, " B"] | None = None  # whether a sample sees its own; None: all do
    image: ImagePrompt | None = None


class ImagePrompt(NamedTuple):
    """Tokens of a picture, which the spatial transformers attend to by keys and values of their own."""

    tokens: Float[Array, "B 1 N E"]
    scale: Float[Array, " B"]  # factor on what is found there


class Control(NamedTuple):
    """What a network next to the U-Net adds to its features."""

    skips: tuple[Float[Array, "B T H W C"], ...]  # in the order of the way down, the first convolution's included
    middle: Float[Array, "B T H W C"]


class Sizes(NamedTuple):
    """What all blocks of a network share."""

    groups: int
    temporal: bool
    use_linear_projection: bool
    kernel: str  # of attention
    dtype: jnp.dtype
    context: str = "none"  # of attention between frames: how it is distributed over devices
    norm_over: str = "frame"  # statistics of the norms
    scale_shift_norm: bool = False  # how the embedding enters residual blocks
    mix_frames: int = 0  # that have a share of their own in mixes; 0: one for all
    max_relative_position: int = 0  # furthest offset that temporal attention distinguishes; 0: none of that kind
    spatial_pattern: AttentionPattern = Spatial()
    temporal_pattern: AttentionPattern = Temporal()
    sharded_axis: str = "frames"  # what of the video the mesh splits, if it does
    temporal_attention: bool = False  # after the feed-forward of spatial transformers
    temporal_rank: int = 0  # of a low-rank temporal convolution after that; 0: none
    directed: Directed | None = None  # next to or after spatial attention, with adaptors

    def attention(self, heads: int, pattern: AttentionPattern | None, name: str, **options: Any) -> Attention:
        """Attention by separate projections, as released weights have them; without a pattern, to the text tokens."""
        return Attention(heads=heads, pattern=pattern, joint=False, kernel=self.kernel, context=self.context,
                         dtype=self.dtype, sharded_axis=self.sharded_axis, name=name, **options)

    def relative(self) -> dict[str, Any]:
        """Options of temporal attention with relative positions, which starts at zero."""
        return {**relative_positions(self.max_relative_position), "out_init": zeros}

    def feed_forward(self, name: str) -> FeedForward:
        """`out(value * gelu(gate))` with four times the channels inside, and the exact GELU."""
        return FeedForward(activation="gelu", gate="joint", dtype=self.dtype, name=name)

    def temporal_transformer(
        self, heads: int, channels: int, name: str, max_relative_position: int = 0
    ) -> TemporalTransformer:
        """Two temporal self-attentions and a feed-forward."""
        return TemporalTransformer(
            heads, channels // heads, self.groups, self.temporal_pattern, max_relative_position=max_relative_position,
            kernel=self.kernel, context=self.context, dtype=self.dtype, sharded_axis=self.sharded_axis, name=name)


def residual_norm(norm_over: str) -> str:
    """Statistics of the norms of residual blocks."""
    return "clip" if norm_over == "residual" else norm_over


def with_conditioning(x: Float[Array, "B T H W C"], block_inputs: BlockInputs, dtype: jnp.dtype) -> Float[Array,
                                                                                                          "B T H W C"]:
    """What a temporal layer sees: features, and what is given of frames by a map that starts at zero."""
    if block_inputs.conditioning_latents is None:
        return x
    return x + Dense(x.shape[-1], kernel_init=zeros, dtype=dtype, name="known")(block_inputs.conditioning_latents)


def level_code(x: Num[Array, "*batch"], channels: int) -> Float[Array, "*batch C"]:
    """Cosines, then sines, of `x` at periods from 2 pi to almost 20,000 pi."""
    return sinusoids(x, channels, order="cos_sin", endpoint=False)


class LatentBlock(nn.Module):
    """A spatial residual block and, in a video network, one over frames of its output, mixed with it."""

    features: int
    sizes: Sizes
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], block_inputs: BlockInputs) -> Float[Array, "B T H W O"]:
        sizes = self.sizes
        options = {"groups": sizes.groups, "epsilon": self.epsilon, "dtype": sizes.dtype,
                   "sharded_axis": sizes.sharded_axis}
        adapted = None if sizes.directed is None else partial(
            AdaptedConvolution, frames=sizes.directed.frames, sharded_axis=sizes.sharded_axis)
        residual = ResidualBlock(self.features, over=residual_norm(sizes.norm_over), convolutions=adapted,
                                 scale_shift_norm=sizes.scale_shift_norm, **options, name="residual")
        x = residual(x, block_inputs.embedding)
        if not sizes.temporal:
            return x
        over_frames = ResidualBlock(self.features, (3, 1, 1), "clip", **options, name="temporal_residual")
        y = over_frames(with_conditioning(x, block_inputs, sizes.dtype), block_inputs.embedding)
        return Mix("spatial", 0.5, sizes.mix_frames, name="mix")(x, y)


def outside_of(references: Float[Array, "B R M C"] | None, seen: Bool[Array, " B"] | None) -> Tokens | None:
    """Reference tokens of a self-attention, hidden from samples that see none."""
    if references is None or seen is None:
        return None if references is None else (references, None)
    return references, jnp.broadcast_to(seen[:, None, None], references.shape[:3])


class TokenBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; over frames, a feed-forward before them too. With
    `Sizes.max_relative_position`, a temporal attention after each spatial attention (LVDM), with
    `Sizes.temporal_attention` one after the feed-forward (Tune-A-Video), with `Sizes.temporal_rank` a temporal
    convolution after that (Follow Your Pose), with `Sizes.directed` a temporal attention next to or after the spatial
    one (MagicVideo); all start as the identity."""

    heads: int
    sizes: Sizes
    over_time: bool = False
    only_cross_attention: bool = False  # the first attention sees the text tokens too, in place of the video

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], tokens: Float[Array, "B G L E"],
        references: Float[Array, "B R M C"] | None = None, image: ImagePrompt | None = None,
        reference_seen: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B T H W C"]:
        sizes = self.sizes

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(1e-5, dtype=sizes.dtype, name=f"norm_{name}")

        def over_frames(i: int, x: Array) -> Array:
            if not sizes.max_relative_position:
                return x
            name = f"time_attention_{i}"
            attention = sizes.attention(self.heads, sizes.temporal_pattern, name, **sizes.relative())
            return x + attention(norm(name)(x))

        def directed(here: Array, x: Array) -> Array:
            if sizes.directed is None:
                return x
            attention = sizes.attention(self.heads, sizes.temporal_pattern, "temporal_attention", out_init=zeros,
                                        masked_after=sizes.directed.mask == "after")
            return x + attention(here if sizes.directed.parallel else norm("temporal_attention")(x))

        if self.over_time:
            x = x + sizes.feed_forward("feed_forward_0")(norm("in")(x))
        pattern = sizes.temporal_pattern if self.over_time else sizes.spatial_pattern
        first = sizes.attention(self.heads, None if self.only_cross_attention else pattern, "self_attention")
        seen = (tokens, None) if self.only_cross_attention else outside_of(references, reference_seen)
        here = norm("attention")(x)
        x = over_frames(0, directed(here, x + first(here, None, seen)))
        to_tokens = sizes.attention(self.heads, None, "cross_attention")
        decoupled = {} if image is None else {"image": (image.tokens, None), "image_scale": image.scale}
        x = over_frames(1, x + to_tokens(norm("context")(x), None, (tokens, None), **decoupled))
        x = x + sizes.feed_forward("feed_forward_1")(norm("feed_forward")(x))
        if self.over_time or not sizes.temporal_attention:
            return x
        attention = sizes.attention(self.heads, sizes.temporal_pattern, "temporal_attention", out_init=zeros)
        x = x + attention(norm("temporal_attention")(x))
        if not sizes.temporal_rank:
            return x
        return LowRankTemporalConvolution(sizes.temporal_rank, dtype=sizes.dtype, sharded_axis=sizes.sharded_axis,
                                          name="temporal_convolution")(x)


class TokenTransformer(nn.Module):
    """A norm, a pointwise map, a block of spatial attention, and a pointwise map, next to a residual connection.

    In a video network a temporal block follows the spatial one and is mixed with it: it sees the number of the
    frame as a learned map of sinusoids, and the text tokens of the first frame.
    """

    heads: int
    sizes: Sizes
    only_cross_attention: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], block_inputs: BlockInputs) -> Float[Array, "B T H W C"]:
        channels, sizes, dtype = x.shape[-1], self.sizes, self.sizes.dtype

        def pointwise(name: str) -> nn.Module:
            if not sizes.use_linear_projection:
                return Convolution(channels, (1, 1, 1), dtype=dtype, sharded_axis=sizes.sharded_axis, name=name)
            return Dense(channels, dtype=dtype, name=name)

        over = "frame" if sizes.norm_over == "residual" else sizes.norm_over
        h = pointwise("in")(GroupNorm(sizes.groups, over, TOKEN_EPSILON, name="norm")(x))
        within = TokenBlock(self.heads, sizes, only_cross_attention=self.only_cross_attention, name="space")
        h = within(h, block_inputs.tokens, block_inputs.references, block_inputs.image, block_inputs.reference_seen)
        if sizes.temporal:
            places = level_code(jnp.arange(x.shape[1]), channels)
            places = silu(Dense(4 * channels, dtype=dtype, name="places_in")(places))
            places = Dense(channels, dtype=dtype, name="places_out")(places)[:, None, None]
            over_frames = TokenBlock(self.heads, sizes, over_time=True, name="time")
            y = over_frames(with_conditioning(h + places, block_inputs, dtype), block_inputs.tokens[:, :1])
            h = Mix("spatial", 0.5, sizes.mix_frames, name="mix")(h, y)
        return x + pointwise("out")(h)


class FactorisedAttention(nn.Module):
    """Spatial, then temporal self-attention with offsets, each with a norm before and a residual connection,
    and starting as the identity: the attention of LVDM's networks without text.

    The norm before temporal attention has statistics per position.
    """

    heads: int
    sizes: Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], block_inputs: BlockInputs) -> Float[Array, "B T H W C"]:
        batch, frames, height, width, channels = x.shape
        sizes = self.sizes
        h = GroupNorm(sizes.groups, name="norm_space")(x)
        within = sizes.attention(self.heads, sizes.spatial_pattern, "space_attention", bias=True, out_init=zeros)
        x = x + within(h, None, outside_of(block_inputs.references, block_inputs.reference_seen))
        h = jnp.moveaxis(x, 1, 3).reshape(-1, frames, 1, 1, channels)
        h = GroupNorm(sizes.groups, "clip", name="norm_time")(h)
        h = jnp.moveaxis(h.reshape(batch, height, width, frames, channels), 3, 1)
        over_frames = sizes.attention(self.heads, sizes.temporal_pattern, "time_attention", bias=True,
                                      **sizes.relative())
        return x + over_frames(h)
