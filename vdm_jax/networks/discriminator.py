"""Patch discriminators, which tell real videos from reconstructed ones place by place (Isola et al. 2017, arXiv
1611.07004), within frames or, with kernels over frames, in space and time."""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vdm_jax.configuration import OddSize, Range, Size, config
from vdm_jax.networks.layers import Convolution, zeros

_SLOPE = 0.2  # of activations below zero
_start = nn.initializers.normal(0.02)


@config
class Discriminator:
    """Sizes of a patch discriminator; the defaults are those of latent diffusion (Rombach et al. 2022, arXiv
    2112.10752), whose patches are of 70 x 70 pixels."""

    # Frames of the kernels. 1: every frame is judged by itself. Video LDM (Blattmann et al. 2023, arXiv 2304.08818)
    # judges videos by 3-D convolutions, whose sizes are not published: ours are 3 frames, without strides over time
    frames: OddSize = 1
    width: Size = 64  # channels of the first layer; doubled from layer to layer up to eight times as many
    layers: Annotated[int, Range(least=1, cap=16)] = 3  # that halve height and width


class BatchStatisticsNorm(nn.Module):
    """Batch normalisation by the statistics of what it is given, over all devices; it keeps none, since nobody asks a
    discriminator after training."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        scale = self.param("scale", lambda key, shape: 1 + _start(key, shape), (x.shape[-1],))
        bias = self.param("bias", zeros, (x.shape[-1],))
        mean = x.mean((0, 1, 2, 3))
        variance = jnp.square(x - mean).mean((0, 1, 2, 3))
        return (x - mean) * lax.rsqrt(variance + self.epsilon) * scale + bias


class PatchDiscriminator(nn.Module):
    """Video in [-1, 1] to a score per patch, high for real ones; float32."""

    config: Discriminator

    @nn.compact
    def __call__(self, video: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 1"]:
        spec, x = self.config, video
        for i in range(spec.layers + 1):
            features, strides = spec.width * min(2**i, 8), (2, 2) if i < spec.layers else (1, 1)
            x = Convolution(features, (spec.frames, 4, 4), strides, _start, name=f"conv_{i}")(x)
            x = BatchStatisticsNorm(name=f"norm_{i}")(x) if i else x
            x = jax.nn.leaky_relu(x, _SLOPE)
        return Convolution(1, (spec.frames, 4, 4), kernel_init=_start, name="out")(x)


def hinge_loss(real: Float[Array, " ..."], fake: Float[Array, " ..."]) -> Float[Array, ""]:
    """What a discriminator minimises, from its scores (Lim & Ye 2017, arXiv 1705.02894)."""
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())
