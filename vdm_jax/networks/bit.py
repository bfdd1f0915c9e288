"""The convolutional backbone of hybrid vision transformers: a ResNet with group normalisation and standardised weights,
"Big Transfer" (Kolesnikov et al. 2019, arXiv 1912.11370; bottleneck layers as in He et al. 2015, arXiv 1512.03385).

Padding is that of TensorFlow: where an odd number of rows or columns is added, the last side has one more.
"""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import Count, Length, Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.layers import GroupNorm, fan_in

STRIDE = 16  # pixels of a side per value of the last map
NARROW = 4  # channels of a layer over those inside it
EPSILON = 1e-8  # of the variance of weights


@config
class BiT:
    """Sizes of the backbone; the defaults are those of R50+ViT-B/16, three stages of a ResNet-50."""

    stem: Width = 64  # channels of the first convolution
    widths: Annotated[tuple[Width, ...], Length()] = (256, 512, 1024)  # of each stage
    blocks: Annotated[tuple[Count, ...], Length()] = (3, 4, 9)  # layers of each stage
    groups: Size = 32  # of the norms

    def __post_init__(self):
        if not len(self.widths) == len(self.blocks) == 3:
            raise UserError(f"BiT.widths={self.widths} with blocks={self.blocks}; permitted: three of each")
        if any(width % (8 * NARROW) for width in self.widths):  # what is inside has a multiple of 8
            raise UserError(f"BiT.widths={self.widths}; permitted: multiples of {8 * NARROW}")
        inside = (width // NARROW for width in self.widths)
        if any(width % self.groups for width in (self.stem, *self.widths, *inside)):
            raise UserError(f"BiT.groups={self.groups} with stem={self.stem} and widths={self.widths}; permitted: "
                            f"divisors of them, and of a quarter of the widths")


class Standardized(nn.Module):
    """Convolution whose kernel has, for each output channel, a mean of 0 and a variance of 1 (Qiao et al. 2019, arXiv
    1903.10520, equation 1), followed by group normalisation."""

    features: int
    side: int  # of the kernel
    groups: int
    dtype: jnp.dtype
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B 1 H W C"]) -> Float[Array, "B 1 H2 W2 O"]:
        kernel = self.param("kernel", fan_in, (1, self.side, self.side, x.shape[-1], self.features))
        kernel = kernel[0].astype(jnp.float32)
        kernel = (kernel - kernel.mean((0, 1, 2))) * jax.lax.rsqrt(kernel.var((0, 1, 2)) + EPSILON)
        y = jax.lax.conv_general_dilated(x[:, 0].astype(self.dtype), kernel.astype(self.dtype), (self.stride,) * 2,
                                         "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return GroupNorm(self.groups, name="norm")(y[:, None])


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, the middle ones in a quarter of the channels, with a residual connection."""

    features: int
    groups: int
    dtype: jnp.dtype
    stride: int
    first: bool  # of its stage: the residual connection has a convolution

    @nn.compact
    def __call__(self, x: Float[Array, "B 1 H W C"]) -> Float[Array, "B 1 H2 W2 O"]:
        def convolution(name: str, features: int, side: int, stride: int = 1) -> nn.Module:
            return Standardized(features, side, self.groups, self.dtype, stride, name=name)

        inside = self.features // NARROW
        y = jax.nn.relu(convolution("conv_1", inside, 1)(x))
        y = jax.nn.relu(convolution("conv_2", inside, 3, self.stride)(y))
        y = convolution("conv_3", self.features, 1)(y)
        return jax.nn.relu(y + (convolution("shortcut", self.features, 1, self.stride)(x) if self.first else x))


class BiTNetwork(nn.Module):
    """Pictures, each a video of one frame, to the maps of all stages: a quarter, an eighth and a sixteenth of their
    sides."""

    config: BiT
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B 1 H W C"]) -> list[Float[Array, "B 1 _ _ _"]]:
        spec = self.config
        x = jax.nn.relu(Standardized(spec.stem, 7, spec.groups, self.dtype, 2, name="stem")(x))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 3, 3, 1), (1, 1, 2, 2, 1), "SAME")
        found = []
        for stage, (width, count) in enumerate(zip(spec.widths, spec.blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                x = Bottleneck(width, spec.groups, self.dtype, stride, not block, name=f"stage_{stage}_{block}")(x)
            found.append(x)
        return found
