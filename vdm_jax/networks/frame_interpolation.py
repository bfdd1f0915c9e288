"""RIFE's network, which makes the frame halfway between two (Huang et al. 2022, arXiv 2011.06294), in the version HDv3
that ControlVideo uses.

Three blocks refine the optical flow from the middle to both frames and a mask of fusion, at a fourth, a half and all of
the resolution. The frames, warped along the flow, are averaged with the mask as weight. The paper's RefineNet, which
adds a residual, is not part of this version. Modules have the names of the released tensors. Arithmetic is float32 at
the highest precision of the device.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

WIDTH = 90  # channels of the released blocks
SCALES = (4, 2, 1)  # by how much each block's input is made smaller
MULTIPLE = 32  # pixels: sides are multiples of this
_RESIDUALS = ("convblock0", "convblock1", "convblock2", "convblock3")
_PRECISION = jax.lax.Precision.HIGHEST


class Halfway(NamedTuple):
    """The frame halfway between two, and what it was made of."""

    frame: Float[Array, "N H W 3"]
    flow: Float[Array, "N H W 4"]  # pixels from the middle to the first frame (x, y) and to the other one (x, y)
    mask: Float[Array, "N H W 1"]  # logit of the first frame's weight


class PReLU(nn.Module):
    """max(x, 0) + weight min(x, 0), with a weight per channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        weight = self.param("weight", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x >= 0, x, weight * x)


class Convolution(nn.Module):
    """A 3x3 convolution, and PReLU."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 O"]:
        x = nn.Conv(self.channels, (3, 3), (self.stride,) * 2, padding=1, precision=_PRECISION, name="0")(x)
        return PReLU(name="1")(x)


class Block(nn.Module):
    """What to add to flow and mask, seen at a `scale`-th of the resolution."""

    width: int
    scale: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W 7"], flow: Float[Array, "N H W 4"]
    ) -> tuple[Float[Array, "N H W 4"], Float[Array, "N H W 1"]]:
        features = jnp.concatenate([_resized(x, 1 / self.scale), _resized(flow, 1 / self.scale) / self.scale], axis=-1)
        features = Convolution(self.width // 2, 2, name="conv0.0")(features)
        features = Convolution(self.width, 2, name="conv0.1")(features)
        for name in _RESIDUALS:
            change = Convolution(self.width, name=f"{name}.0")(features)
            features += Convolution(self.width, name=f"{name}.1")(change)
        flow, mask = self._upsampled(features, "conv1", 4), self._upsampled(features, "conv2", 1)
        return _resized(flow, self.scale) * self.scale, _resized(mask, self.scale)

    def _upsampled(self, x: Float[Array, "N H W C"], name: str, channels: int) -> Float[Array, "N H2 W2 O"]:
        """Four times as large, by two transposed convolutions."""
        x = PReLU(name=f"{name}.1")(_transposed(self.width // 2, f"{name}.0")(x))
        return _transposed(channels, f"{name}.2")(x)


class IFNet(nn.Module):
    """Pairs of frames, RGB in [0, 1] with sides that are multiples of 32, to the frames halfway between them. `width`
    is that of the released network; tests take a smaller one."""

    width: int = WIDTH

    @nn.compact
    def __call__(self, one: Float[Array, "N H W 3"], other: Float[Array, "N H W 3"]) -> Halfway:
        flow, mask = jnp.zeros((*one.shape[:3], 4)), jnp.zeros((*one.shape[:3], 1))
        near, far = one, other
        for number, scale in enumerate(SCALES):
            # The pair is seen both ways round, and what is found is averaged.
            seen = jnp.concatenate([jnp.concatenate([near, far, mask], axis=-1),
                                    jnp.concatenate([far, near, -mask], axis=-1)])
            block = Block(self.width, scale, name=f"block{number}")
            flows, masks = (jnp.split(x, 2) for x in block(seen, jnp.concatenate([flow, _turned(flow)])))
            flow += (flows[0] + _turned(flows[1])) / 2
            mask += (masks[0] - masks[1]) / 2
            near, far = warped(one, flow[..., :2]), warped(other, flow[..., 2:])
        weight = nn.sigmoid(mask)
        return Halfway(weight * near + (1 - weight) * far, flow, mask)


def warped(frames: Float[Array, "N H W C"], along: Float[Array, "N H W 2"]) -> Float[Array, "N H W C"]:
    """Frames at pixel + flow (x, y) in pixels, bilinear; beyond a border the border goes on."""
    height, width = frames.shape[1:3]
    x = jnp.clip(jnp.arange(width) + along[..., 0], 0, width - 1)
    y = jnp.clip(jnp.arange(height)[:, None] + along[..., 1], 0, height - 1)
    left, top = (jnp.floor(place).astype(jnp.int32) for place in (x, y))
    right, low = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    across, down = (x - left)[..., None], (y - top)[..., None]
    number = jnp.arange(len(frames))[:, None, None]
    upper = frames[number, top, left] * (1 - across) + frames[number, top, right] * across
    lower = frames[number, low, left] * (1 - across) + frames[number, low, right] * across
    return upper * (1 - down) + lower * down


def _transposed(channels: int, name: str) -> nn.ConvTranspose:
    return nn.ConvTranspose(channels, (4, 4), (2, 2), padding=((2, 2), (2, 2)), transpose_kernel=True,
                            precision=_PRECISION, name=name)


def _turned(flow: Float[Array, "N H W 4"]) -> Float[Array, "N H W 4"]:
    """The same of the pair the other way round."""
    return jnp.roll(flow, 2, axis=-1)


def _resized(x: Float[Array, "N H W C"], by: float) -> Float[Array, "N H2 W2 C"]:
    """Bilinear between the centres of pixels, without a filter before."""
    size = (round(by * side) for side in x.shape[1:3])
    return x if by == 1 else jax.image.resize(x, (len(x), *size, x.shape[-1]), "bilinear", antialias=False)
