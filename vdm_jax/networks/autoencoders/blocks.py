"""Blocks of the KL autoencoders: residual blocks over space and over time, attention within and over frames,
resampling."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vdm_jax.attention import Spatial, Temporal
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.residual import ResidualBlock
from vdm_jax.networks.blocks.temporal import Mix
from vdm_jax.networks.layers import Convolution, GroupNorm, fan_in, identity, nearest, zeros

TEMPORAL_EPSILON = 1e-5  # of the norms of temporal residual blocks, whatever that of the spatial ones


class Block(nn.Module):
    """A spatial residual block and, in a temporal decoder, one over frames of its output, mixed with it.

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


def frame_attention(
    groups: int, kernel: str, dtype: jnp.dtype, name: str, over_time: bool = False
) -> Attention:
    """Single-head attention with a norm before and a residual connection: among the positions of a frame or, over
    time, of each position in all frames. The second starts as nothing, its output projection being zero (T-KLVAE of
    NUWA-XL: Yin et al. 2023, arXiv 2303.12346)."""
    norm = partial(GroupNorm, groups, epsilon=1e-6, name="norm")
    return Attention(heads=1, pattern=Temporal() if over_time else Spatial(), joint=False, bias=True,
                     out_init=zeros if over_time else fan_in, norm=norm, residual=True, kernel=kernel, dtype=dtype,
                     name=name)


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
