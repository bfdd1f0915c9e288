"""SparseCtrl (Guo et al. 2023, arXiv 2311.16933): a ControlNet of a video network whose maps are of a few frames.

It is a copy of the first half of the image network with motion modules, which carry what is given to the other frames.
Where noisy latents enter there are zeros, so that frames without a map tell it nothing; a mask says which have one.
Maps are pixels or, of pictures, their latents ("RGB"), which enter by a single convolution.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.configuration import Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.control_net import Hint, check_map, residuals_of
from vdm_jax.networks.latent_frames import Motion
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1, LatentUNet, check, embed, image_unet, middle, way_down
from vdm_jax.networks.latent_unet_blocks import BlockInputs, Control
from vdm_jax.networks.layers import Convolution, zeros

MOTION = Motion(attentions=1, middle=False)
MASK = 1  # channels of the frame mask


@config
class SparseControlNet:
    """Sizes of a SparseCtrl; the defaults are those for Stable Diffusion 1.5 and latents of pictures."""

    unet: LatentUNet = dataclasses.replace(LATENT_UNET_SD1, motion=MOTION)  # whose way down and middle it is
    channels: Width = 4  # of the maps, without the mask
    # Of maps of pixels, which are halved before each but the first; (): maps are latents
    hint_widths: tuple[Width, ...] = ()

    def __post_init__(self):
        unet = self.unet
        if unet.motion is None or unet.motion.middle or unet.temporal or unet.temporal_conv or unet.scalars:
            raise UserError("SparseControlNet.unet has no motion modules, one in the middle, other temporal layers or "
                            "scalars; permitted: an image network with Motion(middle=False)", "SparseControlNet.unet")

    @property
    def hint_channels(self) -> int:
        """Of the maps with their mask."""
        return self.channels + MASK

    @property
    def motion(self) -> Motion:
        """Its motion modules."""
        return self.unet.motion

    @property
    def of_latents(self) -> bool:
        """Whether maps are latents of pictures."""
        return not self.hint_widths

    @property
    def factor(self) -> int:
        """Pixels of a side of the map per latent; 1: the map is of latents."""
        return 2 ** max(len(self.hint_widths) - 1, 0)


SPARSE_CONTROL_SD1 = SparseControlNet()
SPARSE_CONTROL_SD1_SCRIBBLE = SparseControlNet(channels=3, hint_widths=(16, 32, 96, 256))


def sparse_control_of(unet: LatentUNet, **options: Any) -> SparseControlNet:
    """The sizes of a SparseCtrl of a video U-Net: its image layers and motion modules of one attention. `options` are
    fields of `SparseControlNet`."""
    motion = dataclasses.replace(unet.motion or MOTION, attentions=1, middle=False, groups=unet.groups)
    own = dataclasses.replace(image_unet(unet), scalars=0, weight_channels=0, motion=motion)
    return SparseControlNet(unet=own, **options)


class SparseControlNetNetwork(nn.Module):
    """Maps of a few frames and their mask to what is added to the U-Net's features. It starts with zeros.

    Raises `UserError` for maps of another size than `factor` times that of the latents.
    """

    config: SparseControlNet

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], level: Float[Array, " B"] | Float[Array, "B T"],
        tokens: Float[Array, "B G L E"], hint: Float[Array, "B T H2 W2 D"], *,
        scale: float | Float[Array, " B"] = 1.0, guess: Float[Array, " B"] | None = None,
        classes: Int[Array, " B"] | None = None,
    ) -> Control:
        """Of the noisy latents `x` the shape matters alone. `hint` is zero but for its given frames, and has their mask
        as its last channel; `scale` and `guess` are as in `ControlNetNetwork`."""
        spec, unet, dtype = self.config, self.config.unet, jnp.dtype(self.config.unet.dtype)
        check(unet, x, tokens, None, classes)
        check_map(spec, x, hint)
        block_inputs = BlockInputs(embed(self, unet, level, None, classes), tokens.astype(dtype))
        width = unet.widths[0]
        if spec.of_latents:
            seen = Convolution(width, kernel_init=zeros, dtype=dtype, name="hint")(hint)
        else:
            seen = Hint(spec.hint_widths, width, dtype, name="hint")(hint)
        x = Convolution(width, dtype=dtype, name="stem")(jnp.zeros_like(x)) + seen
        x, skips = way_down(self, unet, x, block_inputs)
        return residuals_of(skips, middle(self, unet, x, block_inputs), scale, guess, dtype)
