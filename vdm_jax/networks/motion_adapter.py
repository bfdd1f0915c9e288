"""Motion modules of AnimateDiff (Guo et al. 2023, arXiv 2307.04725) without an image network, and how they join one.

    video = join(image.config, image.params, adapter.config, adapter.params)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import Count, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.latent_frames import MOTION_V1, MOTION_V2, MOTION_V3, Motion, motion_module
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.latent_unet_blocks import Sizes


@config
class MotionAdapter:
    """Motion modules for image networks of these sizes; the defaults fit Stable Diffusion 1.x."""

    widths: tuple[Width, ...] = (320, 640, 1280, 1280)  # channels, by level from the finest on
    blocks: Count = 2  # per level on the way down; one more on the way up
    motion: Motion = MOTION_V2
    dtype: str = "float32"  # of the activations

    def __post_init__(self):
        divisor = self.motion.heads, self.motion.groups
        if any(width % n for width in self.widths for n in divisor):
            raise UserError(f"MotionAdapter.widths={self.widths} with {self.motion}; permitted: multiples of heads and "
                            "groups")

    @property
    def places(self) -> dict[str, int]:
        """Name of each module, and its channels."""
        down = {f"down_{i}_{j}_motion": width for i, width in enumerate(self.widths) for j in range(self.blocks)}
        up = {f"up_{i}_{j}_motion": width for i, width in enumerate(reversed(self.widths))
              for j in range(self.blocks + 1)}
        return down | ({"middle_motion": self.widths[-1]} if self.motion.middle else {}) | up


MOTION_ADAPTER_V1 = MotionAdapter(motion=MOTION_V1)
MOTION_ADAPTER_V2 = MotionAdapter()
MOTION_ADAPTER_V3 = MotionAdapter(motion=MOTION_V3)


class MotionAdapterNetwork(nn.Module):
    """Applies each module to features of its own; an image network applies them between its blocks (`join`)."""

    config: MotionAdapter

    @nn.compact
    def __call__(self, features: dict[str, Float[Array, "B T H W C"]]) -> dict[str, Float[Array, "B T H W C"]]:
        """`features` are by place, as is the result."""
        spec = self.config
        sizes = Sizes(spec.motion.groups, False, False, "auto", jnp.dtype(spec.dtype))
        return {name: motion_module(spec.motion, sizes, channels, name)(features[name])
                for name, channels in spec.places.items()}


def join(
    image: LatentUNet, image_params: dict[str, Any], adapter: MotionAdapter, adapter_params: dict[str, Any]
) -> tuple[LatentUNet, dict[str, Any]]:
    """Config and parameters of the video network that an image network and motion modules are together.

    The norms of all have the groups of the image network, whatever the modules say: so does diffusers join them, whose
    video network has one number for both.

    Raises `UserError` for modules of other sizes, and for a network that has temporal layers.
    """
    if (image.widths, image.blocks) != (adapter.widths, adapter.blocks):
        raise UserError(f"motion modules for widths={adapter.widths}, blocks={adapter.blocks}; permitted with this "
                        f"network: widths={image.widths}, blocks={image.blocks}")
    if image.temporal or image.temporal_conv or image.motion:
        raise UserError("the network has temporal layers already; permitted: one of images")
    motion = dataclasses.replace(adapter.motion, groups=image.groups)
    return dataclasses.replace(image, motion=motion), {**image_params, **adapter_params}


def part(video: LatentUNet, params: dict[str, Any]) -> tuple[MotionAdapter, dict[str, Any]]:
    """The motion modules of a video network, the other way of `join`. Raises `UserError` for one without them."""
    if video.motion is None:
        raise UserError("LatentUNet.motion=None; permitted: a network with motion modules")
    adapter = MotionAdapter(widths=video.widths, blocks=video.blocks, motion=video.motion, dtype=video.dtype)
    return adapter, {name: params[name] for name in adapter.places}
