"""The pose guider of Animate Anyone (Hu et al. 2023, arXiv 2311.17117, section 3.2): a map of each frame, convolved to
the size of the latents, is added to the features of the first convolution. It depends on no noise level, so it is made
once per video.

The paper has four convolutions with 4x4 kernels and stride 2, which would make latents of 1/16. As in the open code of
`MooreThreads/Moore-AnimateAnyone`, kernels are 3x3 and three of the levels halve the map.
"""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import Length, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.control_net import Hint


@config
class PoseGuider:
    """Sizes of a pose guider; the defaults are those for Stable Diffusion 1.x."""

    features: Width = 320  # channels of the U-Net's first level
    hint_channels: Width = 3
    # Of the map, which is halved before each but the first
    hint_widths: Annotated[tuple[Width, ...], Length()] = (16, 32, 64, 128)
    dtype: str = "float32"  # of the activations

    @property
    def factor(self) -> int:
        """Pixels of a side of the map per latent."""
        return 2 ** (len(self.hint_widths) - 1)


class PoseGuiderNetwork(nn.Module):
    """Maps in [0, 1] of each frame to what is added after the first convolution. It starts with zeros.

    Raises `UserError` for maps whose sides are no multiples of `factor`, or of other channels.
    """

    config: PoseGuider

    @nn.compact
    def __call__(self, hint: Float[Array, "B T H W D"]) -> tuple[Float[Array, "B T H2 W2 C"]]:
        spec = self.config
        if hint.shape[2] % spec.factor or hint.shape[3] % spec.factor or hint.shape[4] != spec.hint_channels:
            raise UserError(f"map of shape {hint.shape}; permitted: {spec.hint_channels} channels, and sides that are "
                            f"multiples of {spec.factor}")
        return (Hint(spec.hint_widths, spec.features, jnp.dtype(spec.dtype), name="hint")(hint),)
