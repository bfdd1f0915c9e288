"""Blocks of the KL autoencoders: residual blocks over space and over time, attention within and over frames,
resampling."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import Spatial, Temporal, attend
from vdm_jax.errors import UserError
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, fan_in, identity, nearest, silu, zeros

TEMPORAL_EPSILON = 1e-5  # of the norms of temporal residual blocks, whatever that of the spatial ones


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; a 1x1 convolution on the way past where the channels change.

    Where an embedding of the noise level is given, an affine map of it is added between the convolutions; with `film`
    it scales and shifts the second norm instead.
    """

    features: int
    kernel: tuple[int, int, int] = (1, 3, 3)  # frames, rows, columns
    over: Literal["frame", "clip"] = "frame"  # statistics of the norms
    groups: int = 32
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    temporal: int = 1  # frames of a convolution after each of its own, which starts as the identity
    film: bool = False  # how the embedding enters

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], embedding: Float[Array, "B E"] | None = None
    ) -> Float[Array, "B T H W O"]:
        h, modulation = x, None
        for place in ("in", "out"):
            h = silu(GroupNorm(self.groups, self.over, self.epsilon, name=f"norm_{place}")(h, modulation))
            h = Convolution(self.features, self.kernel, dtype=self.dtype, temporal=self.temporal,
                            name=f"conv_{place}")(h)
            if place == "in" and embedding is not None:
                features = (1 + self.film) * self.features
                vector = Dense(features, dtype=self.dtype, name="embedding")(silu(embedding))[:, None, None, None]
                if self.film:
                    modulation = tuple(jnp.split(vector, 2, axis=-1))
                else:
                    h = h + vector
        if x.shape[-1] != self.features:
            x = Convolution(self.features, (1, 1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + h


class Mix(nn.Module):
    """Weighted mean of the outputs of a spatial and a temporal layer, by a learned `sigmoid(factor)`.

    Raises `UserError` for clips of another length where each frame has a factor of its own.
    """

    share_of: Literal["temporal", "spatial"] = "temporal"  # whose weight that is
    start: float = 0.0  # of the factor
    frames: int = 0  # that have a factor each; 0: all have one

    @nn.compact
    def __call__(
        self, spatial: Float[Array, "B T H W C"], temporal: Float[Array, "B T H W C"],
        images: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T H W C"]:
        """Frames that are independent images (`images`) keep the spatial output."""
        factor = self.param("factor", nn.initializers.constant(self.start), (self.frames or 1,))
        if self.frames:
            if self.frames != spatial.shape[1]:
                raise UserError(f"clips of {spatial.shape[1]} frames; permitted: {self.frames}, each of which has a "
                                "share of its own")
            factor = factor[:, None, None, None]
        share = jax.nn.sigmoid(factor if self.share_of == "temporal" else -factor).astype(spatial.dtype)
        if images is not None:
            share = jnp.where(images[:, :, None, None, None], 0, share)
        return spatial + share * (temporal - spatial)


class Block(nn.Module):
    """A residual block within frames and, in a temporal decoder, one over frames of its output, mixed with it.

    The temporal block of Stable Video Diffusion's decoder (Blattmann et al. 2023, arXiv 2311.15127) has convolutions
    over three frames and norms over the clip. The learned share is that of the *temporal* path, while in the diffusion
    network of the same model it is that of the spatial one.
    """

    features: int
    temporal: bool
    options: dict[str, Any]  # groups, dtype, temporal

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W O"]:
        x = ResidualBlock(self.features, **self.options, name="residual")(x)
        if not self.temporal:
            return x
        over_frames = ResidualBlock(self.features, (3, 1, 1), "clip", epsilon=TEMPORAL_EPSILON, **self.options,
                                    name="temporal_residual")
        return Mix(name="mix")(x, over_frames(x))


class FrameAttention(nn.Module):
    """Single-head attention with a norm before and a residual connection: among the positions of a frame or, over
    time, of each position in all frames. The second starts as nothing, its output projection being zero (T-KLVAE of
    NUWA-XL: Yin et al. 2023, arXiv 2303.12346)."""

    groups: int
    kernel: str  # of attention
    dtype: jnp.dtype
    over_time: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        h = GroupNorm(self.groups, epsilon=1e-6, name="norm")(x)
        q, k, v = (Dense(x.shape[-1], dtype=self.dtype, name=name)(h)[..., None, :]
                   for name in ("query", "key", "value"))
        h = attend(q, k, v, pattern=Temporal() if self.over_time else Spatial(), kernel=self.kernel)[..., 0, :]
        return x + Dense(x.shape[-1], kernel_init=zeros if self.over_time else fan_in, dtype=self.dtype, name="out")(h)


class Halve(nn.Module):
    """Convolution with stride 2 that is padded at the bottom and the right only."""

    dtype: jnp.dtype
    temporal: int = 1  # frames of the convolution that follows, as of `Convolution`

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C"]:
        channels = x.shape[-1]
        kernel = self.param("kernel", fan_in, (1, 3, 3, channels, channels)).astype(self.dtype)
        bias = self.param("bias", zeros, (channels,)).astype(self.dtype)
        frames = x.astype(self.dtype).reshape(-1, *x.shape[2:])
        y = lax.conv_general_dilated(frames, kernel[0], (2, 2), ((0, 1), (0, 1)),
                                     dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = (y + bias).reshape(*x.shape[:2], *y.shape[1:])
        if self.temporal == 1:
            return y
        return Convolution(channels, (self.temporal, 1, 1), kernel_init=identity(False), dtype=self.dtype,
                           name="temporal")(y)


class Double(nn.Module):
    """Every pixel twice in height and width, cut to `shape`, then a convolution."""

    dtype: jnp.dtype
    temporal: int = 1  # frames of the convolution that follows that one
    shape: tuple[int, int] | None = None  # rows and columns; None: all

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C"]:
        x = nearest(x, (2, 2))
        if self.shape is not None:
            x = x[:, :, : self.shape[0], : self.shape[1]]
        return Convolution(x.shape[-1], dtype=self.dtype, temporal=self.temporal, name="conv")(x)
