"""The 3-D autoencoder of LVDM (He et al. 2022, arXiv 2211.13221): convolutions over frames, rows and columns.

Edges of a clip are repeated, norms span the clip. Levels shrink by strided convolutions of size 4 and grow by
transposed ones; the first levels, and in the decoder the first from the coarsest, also change the number of frames.
Kernels keep the canonical shape `(kt, kh, kw, Cin, Cout)` and run as 2-D convolutions of neighbouring frames side by
side.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.blocks.residual import ResidualBlock
from vdm_jax.networks.layers import GroupNorm, fan_in, silu, zeros

Strides = tuple[int, int, int]  # frames, rows, columns
EPSILON = 1e-6


def convolve_clip(
    x: Float[Array, "B T H W C"], kernel: Float[Array, "kt kh kw C O"], strides: Strides
) -> Float[Array, "B T2 H2 W2 O"]:
    """Convolution of a clip with repeated edges; sizes are divided by the strides."""
    batch, taps, stride = len(x), kernel.shape[0], strides[0]
    x = _with_edges(x, kernel, strides)
    frames = (x.shape[1] - taps) // stride + 1
    near = jnp.concatenate([x[:, tap : tap + (frames - 1) * stride + 1 : stride] for tap in range(taps)], axis=-1)
    return _convolve_frames(near, kernel, batch, window_strides=strides[1:])


def grow_clip(
    x: Float[Array, "B T H W C"], kernel: Float[Array, "kt kh kw C O"], strides: Strides
) -> Float[Array, "B T2 H2 W2 O"]:
    """Transposed convolution of a clip with repeated edges; sizes are multiplied by the strides.

    The kernel is applied as stored: a published one of a transposed convolution is turned round in all three axes.
    Between frames there would be zeros for the taps to meet; those taps are left out, which differ by output phase.
    """
    batch, taps, stride, length = len(x), kernel.shape[0], strides[0], x.shape[1]
    x, phases = _with_edges(x, kernel, strides), []
    for phase in range(stride):
        met = [tap for tap in range(taps) if (phase + tap) % stride == 0]
        near = jnp.concatenate([x[:, (phase + tap) // stride :][:, :length] for tap in met], axis=-1)
        part = jnp.stack([kernel[tap] for tap in met])
        phases.append(_convolve_frames(near, part, batch, window_strides=(1, 1), lhs_dilation=strides[1:]))
    return rearrange(jnp.stack(phases), "p b t h w o -> b (t p) h w o")


def _with_edges(x: Array, kernel: Array, strides: Strides) -> Array:
    """The clip with its edges repeated as often as the kernel is larger than the stride; where that is odd, once more
    before than after."""
    more = [size - stride for size, stride in zip(kernel.shape[:3], strides, strict=True)]
    return jnp.pad(x, ((0, 0), *((n - n // 2, n // 2) for n in more), (0, 0)), mode="edge")


def _convolve_frames(near: Array, kernel: Array, batch: int, **options: tuple[int, int]) -> Array:
    y = lax.conv_general_dilated(
        rearrange(near, "b t h w c -> (b t) h w c"), rearrange(kernel, "kt kh kw c o -> kh kw (kt c) o"),
        padding=((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)
    return rearrange(y, "(b t) h w o -> b t h w o", b=batch)


class ClipConvolution(nn.Module):
    """Convolution over frames, rows and columns with repeated edges, or its transpose."""

    features: int
    size: int = 3  # of the kernel, in all three directions
    strides: Strides = (1, 1, 1)
    transposed: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        kernel = self.param("kernel", fan_in, (*(self.size,) * 3, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        function = grow_clip if self.transposed else convolve_clip
        return function(x.astype(self.dtype), kernel, self.strides) + bias


class ClipResidual(ResidualBlock):
    """A residual block of such convolutions, with norms over the clip."""

    over: str = "clip"

    def _convolve(self, h: Array, name: str, *mixer_inputs: Any) -> Array:
        return ClipConvolution(self.features, dtype=self.dtype, name=name)(h)


def level_strides(spec: Autoencoder, level: int) -> Strides:
    """Of the change of resolution before level 0, 1, ... of either half."""
    return (2 if spec.time_factor >= 2 ** (level + 1) else 1, 2, 2)


class ClipEncoder(nn.Module):
    """Video to the moments of its latents, side by side."""

    config: Autoencoder

    @nn.compact
    def __call__(self, video: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x = ClipConvolution(spec.widths[0], dtype=dtype, name="stem")(video)
        for i, width in enumerate(spec.widths[1:]):
            x = ClipConvolution(width, 4, level_strides(spec, i), dtype=dtype, name=f"downsample_{i}")(x)
            for j in range(spec.blocks):
                x = ClipResidual(width, groups=spec.groups, dtype=dtype, name=f"down_{i}_{j}_residual")(x)
        x = silu(GroupNorm(spec.groups, "clip", EPSILON, name="norm")(x))
        return ClipConvolution(2 * spec.latent_channels, dtype=dtype, name="out")(x)


class ClipDecoder(nn.Module):
    """Latents to video; levels are numbered from the coarsest."""

    config: Autoencoder

    @nn.compact
    def __call__(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x = latents
        for i, width in enumerate(reversed(spec.widths[1:])):
            x = ClipConvolution(width, 4, level_strides(spec, i), True, dtype, name=f"upsample_{i}")(x)
            for j in range(spec.blocks + 1):
                x = ClipResidual(width, groups=spec.groups, dtype=dtype, name=f"up_{i}_{j}_residual")(x)
        return ClipConvolution(spec.channels, dtype=dtype, name="out")(x)
