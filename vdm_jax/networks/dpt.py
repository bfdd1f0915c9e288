"""The dense prediction transformer, DPT: depth of single pictures (Ranftl et al. 2021, arXiv 2103.13413).

Tokens of layers of a vision transformer become feature maps of several scales ("reassemble", section 3.1), which
convolutions fuse from the coarsest to the finest, and a head turns into one number per pixel. The released networks
were trained as MiDaS (Ranftl et al. 2019, arXiv 1907.01341): they predict inverse depth up to a scale and an offset,
which is large where something is near. The hybrid one sees a picture through a ResNet, whose first two stages are
feature maps as well.
"""

from __future__ import annotations

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.configuration import Ascending, CountOrZero, Depth, Length, Positive, Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.bit import STRIDE, BiT, BiTNetwork
from vdm_jax.networks.blocks.feed_forward import ACTIVATIONS, Activation
from vdm_jax.networks.encoders.clip_layers import CLIPLayer, check_heads
from vdm_jax.networks.encoders.clip_vision import Patches
from vdm_jax.networks.layers import Convolution, Dense, depth_to_space, fan_in, zeros

HEAD_WIDTH = 32  # channels of the head before its last layer


@config
class DPT:
    """Sizes of a DPT; the defaults are those of DPT-Large, whose patches are pixels."""

    size: Size = 384  # pixels of a side of the pictures that positions were trained with
    patch: Size = 16  # pixels of a patch's side
    channels: Width = 3  # of the picture
    width: Size = 1024  # channels of tokens
    layers: Depth = 24
    heads: Size = 16
    hidden: Width = 4096  # channels inside the feed-forward layers
    activation: Activation = "gelu"
    epsilon: Positive = 1e-12  # of the norms
    taps: Annotated[tuple[CountOrZero, ...], Length(), Ascending()] = (5, 11, 17, 23)  # layers whose tokens are used
    readout: Literal["ignore", "add", "project"] = "project"  # what other tokens learn of the first one
    # Of each of these: how much finer its map is than the grid of patches, and its channels before the fusion
    factors: Annotated[tuple[Positive, ...], Length()] = (4.0, 2.0, 1.0, 0.5)
    widths: Annotated[tuple[Width, ...], Length()] = (256, 512, 1024, 1024)
    fusion: Width = 256  # channels of the fusion
    backbone: BiT | None = None  # what patches are made of; its first two maps come before those of `taps`
    dtype: str = "float32"  # of the activations

    def __post_init__(self):
        check_heads(self)
        if self.size % self.patch:
            raise UserError(f"DPT.size={self.size} with patch={self.patch}; permitted: multiples of the patch")
        if len(set(self.taps)) != len(self.taps) or self.taps[-1] >= self.layers:
            raise UserError(f"DPT.taps={self.taps} with layers={self.layers}; permitted: different layers below it")
        if not len(self.taps) == len(self.factors) == len(self.widths):
            raise UserError(f"DPT.taps={self.taps} with factors={self.factors} and widths={self.widths}; permitted: as "
                            "many of each")
        if self.backbone is not None and self.patch != STRIDE:
            raise UserError(f"DPT.patch={self.patch} with a backbone; permitted: {STRIDE}")
        for factor in self.factors:
            if not (factor if factor >= 1 else 1 / factor).is_integer():
                raise UserError(f"DPT.factors={self.factors}; permitted: 1, 2, 3, ... and 1 over these")


DPT_LARGE = DPT()
DPT_HYBRID = DPT(width=768, layers=12, heads=12, hidden=3072, taps=(8, 11), factors=(1.0, 0.5), widths=(768, 768),
                 backbone=BiT())


class Reassemble(nn.Module):
    """Tokens of a layer as a feature map, `factor` times as fine as the grid of patches."""

    config: DPT
    tap: int  # which of those of the config

    @nn.compact
    def __call__(self, tokens: Float[Array, "B L C"], grid: tuple[int, int]) -> Float[Array, "B 1 H W O"]:
        """`grid`: rows and columns of patches, whose tokens follow the first one."""
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        factor, width = spec.factors[self.tap], spec.widths[self.tap]
        summary, x = tokens[:, :1], tokens[:, 1:]
        if spec.readout == "add":
            x = x + summary
        elif spec.readout == "project":
            x = jnp.concatenate([x, jnp.broadcast_to(summary, x.shape)], axis=-1)
            x = ACTIVATIONS[spec.activation](Dense(spec.width, dtype=dtype, name="readout")(x))
        x = x.reshape(len(x), 1, *grid, spec.width)
        x = Convolution(width, (1, 1, 1), dtype=dtype, name="project")(x)
        if factor > 1:
            return Transposed(int(factor), dtype, name="resize")(x)
        if factor < 1:
            return Convolution(width, (1, 3, 3), (round(1 / factor),) * 2, dtype=dtype, name="resize")(x)
        return x


class Transposed(nn.Module):
    """Transposed convolution to blocks of `factor x factor` pixels that do not overlap. The kernel is that of the
    convolution which it transposes, so output channels stand before input channels."""

    factor: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C"]:
        channels = x.shape[-1]
        kernel = self.param("kernel", fan_in, (1, self.factor, self.factor, channels, channels)).astype(self.dtype)
        bias = self.param("bias", zeros, (channels,)).astype(self.dtype)
        y = jnp.einsum("bthwc,pqoc->bthwpqo", x.astype(self.dtype), kernel[0]) + bias
        return depth_to_space(y.reshape(*x.shape[:-1], -1), self.factor)


class Residual(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, with a residual connection."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        y = x
        for name in ("conv_1", "conv_2"):
            y = Convolution(x.shape[-1], dtype=self.dtype, name=name)(jax.nn.relu(y))
        return x + y


class Fusion(nn.Module):
    """The features so far, with those of the next finer map, in twice the size."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], finer: Float[Array, "B T H2 W2 C"] | None
    ) -> Float[Array, "B T _ _ C"]:
        inner = Residual(self.dtype, name="residual_1")
        if finer is None:  # nothing is added to the coarsest map, whose files have these layers too
            inner(x)
        else:
            finer = jax.image.resize(finer, x.shape, "bilinear", antialias=False)
            x = x + inner(finer)
        x = doubled(Residual(self.dtype, name="residual_2")(x))
        return Convolution(x.shape[-1], (1, 1, 1), dtype=self.dtype, name="project")(x)


def doubled(x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C"]:
    """Twice the rows and columns by linear interpolation, the first and the last ones where they were."""
    for axis in (2, 3):
        place = np.linspace(0, x.shape[axis] - 1, 2 * x.shape[axis])
        left = np.minimum(place.astype(int), x.shape[axis] - 1)
        right = np.minimum(left + 1, x.shape[axis] - 1)
        share = jnp.asarray(place - left, x.dtype).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = jnp.take(x, left, axis) * (1 - share) + jnp.take(x, right, axis) * share
    return x


class DPTNetwork(nn.Module):
    """Pictures `[B, H, W, C]`, less a mean and over a standard deviation, to a number for each pixel, at least 0, in a
    size that the factors give: that of the picture for those of the released networks.

    Positions are interpolated to the grid of the picture's patches. Raises `UserError` for pictures whose sides are no
    multiples of the patch, or of other channels.
    """

    config: DPT

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        grid = tuple(side // spec.patch for side in images.shape[1:3])
        if any(side % spec.patch for side in images.shape[1:3]) or images.shape[3] != spec.channels:
            raise UserError(f"pictures of shape {images.shape}; permitted: {spec.channels} channels, and sides that "
                            f"are multiples of {spec.patch}")
        maps, tokens = self._tapped(images, grid)
        found = maps + [Reassemble(spec, tap, name=f"reassemble_{len(maps) + tap}")(x, grid)
                        for tap, x in enumerate(tokens)]
        found = [Convolution(spec.fusion, use_bias=False, dtype=dtype, name=f"convert_{number}")(x)
                 for number, x in enumerate(found)]
        count = len(found)
        x = found.pop()
        for number in range(count):
            x = Fusion(dtype, name=f"fuse_{number}")(x, found.pop() if number else None)
        x = doubled(Convolution(spec.fusion // 2, dtype=dtype, name="head_in")(x))
        x = jax.nn.relu(Convolution(HEAD_WIDTH, dtype=dtype, name="head_middle")(x))
        x = jax.nn.relu(Convolution(1, (1, 1, 1), dtype=dtype, name="head_out")(x))
        return x[:, 0, ..., 0].astype(jnp.float32)

    def _tapped(
        self, images: Float[Array, "B H W C"], grid: tuple[int, int]
    ) -> tuple[list[Float[Array, "B 1 _ _ _"]], list[Float[Array, "B L E"]]]:
        """Maps of the backbone, and tokens after each of the layers that are used."""
        spec, dtype, side = self.config, jnp.dtype(self.config.dtype), self.config.size // self.config.patch
        maps = []
        if spec.backbone is None:
            x = Patches(spec.width, spec.patch, dtype, use_bias=True, name="patches")(images)
        else:
            *maps, x = BiTNetwork(spec.backbone, dtype, name="backbone")(images[:, None])
            x = Convolution(spec.width, (1, 1, 1), dtype=dtype, name="project")(x).reshape(len(x), -1, spec.width)
        summary = self.param("summary", nn.initializers.normal(0.02), (1, 1, spec.width)).astype(dtype)
        places = self.param("places", nn.initializers.normal(0.02), (1, side**2 + 1, spec.width)).astype(dtype)
        of_patches = jax.image.resize(places[:, 1:].reshape(1, side, side, -1), (1, *grid, spec.width), "bilinear",
                                      antialias=False)
        places = jnp.concatenate([places[:, :1], of_patches.reshape(1, -1, spec.width)], axis=1)
        x = jnp.concatenate([jnp.broadcast_to(summary, (len(x), 1, spec.width)), x], axis=1) + places
        found = []
        for i in range(spec.layers):
            x = CLIPLayer(spec.heads, spec.hidden, spec.activation, spec.epsilon, dtype, name=f"layer_{i}")(x)
            found.append(x)
        nn.LayerNorm(spec.epsilon, dtype=dtype, name="norm")(x)  # in the files; the depth is of tokens before it
        return maps, [found[i] for i in spec.taps]
