"""Temporal layers: those between the spatial layers of a video network, which an image network has not.

Each starts as the identity, or as a mean with the spatial layer before it, so that a video network begins as its image
network. Frames at the end that are independent images (joint training) pass them by.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import AttentionPattern, Temporal
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.feed_forward import FeedForward
from vdm_jax.networks.blocks.sinusoids import frame_code
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, add_residual, fan_in, silu, zeros


def add_to_clip(x: Float[Array, "B T H W C"], change: Float[Array, "B T2 H W C"], images: int) -> Array:
    """`x + change`, and `x` alone in so many images at the end, of which `change` has none."""
    return add_residual(x, jnp.pad(change, ((0, 0), (0, images), (0, 0), (0, 0), (0, 0))) if images else change)


def clip_of(x: Float[Array, "B T H W C"], images: int, frame_valid: Bool[Array, "B T2"] | None = None) -> Array:
    """The frames of the clip, without images at the end; those that do not exist are zero, as beyond its ends."""
    if frame_valid is not None:
        x = jnp.where(frame_valid[:, : x.shape[1], None, None, None], x, 0)
    return x[:, : x.shape[1] - images]


class Mix(nn.Module):
    """Weighted mean of the outputs of a spatial and a temporal layer, by a learned `sigmoid(factor)`.

    Raises `UserError` for clips of another length where each frame has a factor of its own.
    """

    share_of: Literal["temporal", "spatial"] = "temporal"  # whose weight that is
    start: float = 0.0  # of the factor
    frames: int = 0  # that have a factor each; 0: all have one

    @nn.compact
    def __call__(
        self, spatial: Float[Array, "*shape"], temporal: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        factor = self.param("factor", nn.initializers.constant(self.start), (self.frames or 1,))
        if self.frames:
            if self.frames != spatial.shape[1]:
                raise UserError(f"clips of {spatial.shape[1]} frames; permitted: {self.frames}, each of which has a "
                                "share of its own")
            factor = factor[:, None, None, None]
        share = jax.nn.sigmoid(factor if self.share_of == "temporal" else -factor).astype(spatial.dtype)
        return spatial + share * (temporal - spatial)


class TemporalConvolutions(nn.Module):
    """Norm, SiLU and temporal convolution, once (`norm`, `conv`) or several times (`norm_0`, ...), next to a residual
    connection; the last one starts at zero."""

    layers: int = 1
    kernel: int = 3  # frames
    spatial: bool = False  # the second is over 3x3 pixels of a frame (Make-Your-Video: Xing et al. 2023, 2306.00943)
    replicate: bool = False  # frames beyond the ends of a clip are its first and last one, not zero
    causal: bool = False  # no frame sees later ones
    dropout: float = 0.0  # probability, before all but the first
    groups: int = 32
    norm_over: str = "clip"
    dtype: jnp.dtype = jnp.float32
    sharded_axis: str = "frames"  # what of the video the mesh splits, if it does

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], images: int = 0, frame_valid: Bool[Array, "B T"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B T H W C"]:
        h = x
        for i in range(self.layers):
            number = "" if self.layers == 1 else f"_{i}"
            h = silu(GroupNorm(self.groups, self.norm_over, name=f"norm{number}")(h))
            h = nn.Dropout(self.dropout, deterministic=not train)(h) if i else clip_of(h, images, frame_valid)
            init = zeros if i == self.layers - 1 else fan_in
            kernel = (1, 3, 3) if self.spatial and i == 1 else (self.kernel, 1, 1)
            h = Convolution(x.shape[-1], kernel, kernel_init=init, dtype=self.dtype, sharded_axis=self.sharded_axis,
                            causal=self.causal, replicate=self.replicate, name=f"conv{number}")(h)
        return add_to_clip(x, h, images)


class LowRankTemporalConvolution(nn.Module):
    """A temporal convolution to a few channels and one back to all of them, without biases and next to a residual
    connection; the last one starts at zero (Follow Your Pose: Ma et al. 2023, arXiv 2304.01186, in its code)."""

    rank: int  # channels between the two
    kernel: int = 3  # frames
    dtype: jnp.dtype = jnp.float32
    sharded_axis: str = "frames"  # what of the video the mesh splits, if it does

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        options = {"kernel": (self.kernel, 1, 1), "use_bias": False, "dtype": self.dtype,
                   "sharded_axis": self.sharded_axis}
        h = Convolution(self.rank, kernel_init=nn.initializers.normal(1 / self.rank), name="down", **options)(x)
        return add_residual(x, Convolution(x.shape[-1], kernel_init=zeros, name="up", **options)(h))


class ConvolutionInflation(nn.Module):
    """Norm, SiLU, spatial convolution, SiLU, temporal convolution, zero-initialised projection (Lumiere: Bar-Tal et al.
    2024, arXiv 2401.12945; where norm and activation are is not published)."""

    kernel: int = 3  # pixels
    temporal_kernel: int = 3  # frames
    groups: int = 32
    norm_over: str = "frame"
    dtype: jnp.dtype = jnp.float32
    sharded_axis: str = "frames"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], images: int = 0, frame_valid: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T H W C"]:
        channels, options = x.shape[-1], {"dtype": self.dtype, "sharded_axis": self.sharded_axis}
        h = clip_of(silu(GroupNorm(self.groups, self.norm_over, name="norm")(x)), images)
        h = silu(Convolution(channels, (1, self.kernel, self.kernel), name="spatial", **options)(h))
        h = Convolution(channels, (self.temporal_kernel, 1, 1), name="temporal", **options)(
            clip_of(h, 0, frame_valid))
        return add_to_clip(x, Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(h), images)


def relative_positions(furthest: int) -> dict[str, Any]:
    """Options of a temporal attention whose keys and values have learned vectors of the offset added (Shaw et al. 2018,
    arXiv 1803.02155); further offsets share the last one's."""
    return {"position": "shaw_key_value", "position_names": ("offset_keys", "offset_values"), "max_offset": furthest}


class TemporalTransformer(nn.Module):
    """Norm over the clip, affine map, temporal self-attentions, two or as many as asked for, feed-forward, affine map,
    next to a residual connection. With `code`, each attention's input has the code of the frame's number added.

    ModelScope's (Wang et al. 2023, arXiv 2308.06571), with the code the motion module of AnimateDiff (Guo et al. 2023,
    arXiv 2307.04725), and with vectors of the offset on keys and values that of Make-Your-Video (Xing et al. 2023,
    arXiv 2306.00943).
    """

    heads: int
    head_dim: int
    groups: int
    pattern: AttentionPattern = Temporal()
    code: bool = False
    attentions: int = 2
    max_relative_position: int = 0  # furthest offset that a vector of its own is learned of; 0: there are none
    kernel: str = "auto"  # of attention
    context: str = "none"
    dtype: jnp.dtype = jnp.float32
    sharded_axis: str = "frames"

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        dtype, inner = self.dtype, self.heads * self.head_dim
        relative = relative_positions(self.max_relative_position) if self.max_relative_position else {}

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(1e-5, dtype=dtype, name=f"norm_{name}")

        h = GroupNorm(self.groups, "clip", 1e-6, name="norm")(x)
        h = Dense(inner, dtype=dtype, name="in")(h)
        for i in range(self.attentions):
            seen = norm(f"attention_{i}")(h)
            if self.code:
                seen = seen + jnp.asarray(frame_code(x.shape[1], inner), dtype)[:, None, None]
            h = h + Attention(self.head_dim, self.heads, self.pattern, joint=False, kernel=self.kernel, dtype=dtype,
                              context=self.context, sharded_axis=self.sharded_axis, name=f"self_attention_{i}",
                              **relative)(seen)
        h = h + FeedForward(activation="gelu", gate="joint", dtype=dtype, name="feed_forward")(norm("feed_forward")(h))
        return add_residual(x, Dense(x.shape[-1], kernel_init=zeros, dtype=dtype, name="out")(h))
