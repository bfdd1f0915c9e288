"""The image encoder of CLIP, a vision transformer (Radford et al. 2021, arXiv 2103.00020).

Stable Video Diffusion (Blattmann et al. 2023, arXiv 2311.15127) sees its first frame as the projected summary of
OpenCLIP's ViT-H/14: one token. Wan 2.1 (Wan Team 2025, arXiv 2503.20314) sees all tokens of the layer before the last.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.configuration import Depth, Positive, Size, Width, WidthOrZero, config
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.feed_forward import Activation
from vdm_jax.networks.encoders.clip_layers import CLIPLayer, check_heads
from vdm_jax.networks.layers import Dense, fan_in, space_to_depth, zeros

# Mean and standard deviation of red, green and blue, of pixels in [0, 1], that the released models were trained with.
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@config
class CLIPVision:
    """Sizes of a CLIP image encoder; the defaults are those of ViT-L/14."""

    size: Size = 224  # pixels of a side
    patch: Size = 14  # pixels of a patch's side
    channels: Width = 3  # of the image
    width: Size = 1024  # channels
    layers: Depth = 24
    heads: Size = 16
    hidden: Width = 4096  # channels inside the feed-forward layers
    activation: Activation = "quick_gelu"
    epsilon: Positive = 1e-5  # of the norms
    project: WidthOrZero = 768  # channels of the projected summary; 0: no projection
    dtype: str = "float32"  # of the activations

    def __post_init__(self):
        check_heads(self)
        if self.size % self.patch:
            raise UserError(f"CLIPVision.size={self.size} with patch={self.patch}; permitted: multiples of the patch")


CLIP_VISION_L = CLIPVision()
CLIP_VISION_H = CLIPVision(width=1280, layers=32, hidden=5120, activation="gelu", project=1024)


class ImageFeatures(NamedTuple):
    """What an image encoder gives."""

    tokens: Float[Array, "B L C"]  # of the last layer, the summary's place first, before the final norm
    pooled: Float[Array, "B C"]  # the summary, after the final norm, projected where asked for
    penultimate: Float[Array, "B L C"]  # as `tokens`, of the layer before the last


class Patches(nn.Module):
    """Affine map of each patch, with the canonical kernel of the convolution that it is."""

    features: int
    patch: Size  # pixels of a side
    dtype: jnp.dtype
    use_bias: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B L O"]:
        shape = (1, self.patch, self.patch, images.shape[-1], self.features)
        kernel = self.param("kernel", fan_in, shape).reshape(-1, self.features)
        patches = space_to_depth(images[:, None], self.patch)  # [B, 1, H', W', patch * patch * C]
        y = patches.reshape(len(images), -1, len(kernel)).astype(self.dtype) @ kernel.astype(self.dtype)
        return y + self.param("bias", zeros, (self.features,)).astype(self.dtype) if self.use_bias else y


class CLIPVisionEncoder(nn.Module):
    """Images `[B, H, W, C]` in [0, 1], less `PIXEL_MEAN`, over `PIXEL_STD`, to features. Raises `UserError` for another
    size."""

    config: CLIPVision

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> ImageFeatures:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        if images.shape[1:] != (spec.size, spec.size, spec.channels):
            raise UserError(f"images of shape {images.shape}; permitted: [B, {spec.size}, {spec.size}, "
                            f"{spec.channels}]")
        x = Patches(spec.width, spec.patch, dtype, name="patches")(images)
        summary = self.param("summary", nn.initializers.normal(0.02), (spec.width,))
        places = self.param("places", nn.initializers.normal(0.02), (x.shape[1] + 1, spec.width))
        summary = jnp.broadcast_to(summary.astype(dtype), (len(x), 1, spec.width))
        x = jnp.concatenate([summary, x], axis=1) + places.astype(dtype)
        x = nn.LayerNorm(spec.epsilon, dtype=dtype, name="norm_in")(x)
        penultimate = x
        for i in range(spec.layers):
            penultimate = x
            x = CLIPLayer(spec.heads, spec.hidden, spec.activation, spec.epsilon, dtype, name=f"layer_{i}")(x)
        pooled = nn.LayerNorm(spec.epsilon, dtype=dtype, name="norm")(x[:, 0])
        if spec.project:
            pooled = Dense(spec.project, use_bias=False, dtype=dtype, name="project")(pooled)
        return ImageFeatures(x, pooled, penultimate)
