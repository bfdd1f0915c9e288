"""Blocks that follow those of an image network and let its frames see each other (Lumiere: Bar-Tal et al. 2024, arXiv
2401.12945). Both end in a projection that starts at zero, so a fresh block is the identity.

Where the norms and the activation are is not published: those of the residual blocks here.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.networks import config as cfg
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, add_residual, fan_in, silu, zeros
from vdm_jax.networks.mixers import SelfAttentionLayer


class ConvolutionInflationLayer(nn.Module):
    """Norm, SiLU, convolution within frames, SiLU, convolution over frames, zero-initialised projection.

    Appended independent images are left alone, and a frame that does not exist counts as the padding beyond the clip.
    """

    config: cfg.ConvolutionInflation
    groups: int
    norm_over: str
    dtype: jnp.dtype
    spread: str = "frames"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], images: int, frame_valid: Bool[Array, "B T"] | None = None
    ) -> Array:
        spec, channels, frames = self.config, x.shape[-1], x.shape[1] - images
        options = {"dtype": self.dtype, "spread": self.spread}
        h = silu(GroupNorm(self.groups, self.norm_over, name="norm")(x))[:, :frames]
        h = silu(Convolution(channels, (1, spec.kernel, spec.kernel), name="spatial", **options)(h))
        if frame_valid is not None:
            h = jnp.where(frame_valid[:, :frames, None, None, None], h, 0)
        h = Convolution(channels, (spec.temporal_kernel, 1, 1), name="temporal", **options)(h)
        h = Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(h)
        return add_residual(x, jnp.pad(h, ((0, 0), (0, images), (0, 0), (0, 0), (0, 0))) if images else h)


class AttentionInflationLayer(nn.Module):
    """Residual attention layers over frames one after the other, norm, zero-initialised projection."""

    config: cfg.AttentionInflation
    groups: int
    norm_over: str
    dtype: jnp.dtype
    spread: str = "frames"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], frame_mask: Bool[np.ndarray, "T T"] | None,
        frame_valid: Bool[Array, "B T"] | None = None,
    ) -> Array:
        common, h = (self.groups, self.norm_over, self.dtype, self.spread), x
        for i in range(self.config.layers):
            layer = SelfAttentionLayer(self.config.attention, *common, out_init=fan_in, name=f"temporal_attention_{i}")
            h = layer(h, frame_mask, None, frame_valid)
        h = GroupNorm(self.groups, self.norm_over, name="norm")(h)
        return add_residual(x, Dense(x.shape[-1], kernel_init=zeros, dtype=self.dtype, name="out")(h))
