"""Tokens of a picture, of what CLIP and the autoencoder make of it (DreamPose: Karras et al. 2023, arXiv 2304.06025,
section 4.1, and sizes and beginning of the authors' code).

The latents of the picture are halved by maxima, and each of their channels becomes a further token. An affine map of
the tokens, the same for all channels, makes as many of them as the encoder had. It begins as those of the encoder: the
latents come in as they are learned.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.configuration import Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.layers import Dense


@config
class PictureAdapter:
    """Sizes; the defaults are those for CLIP ViT-B/32, Stable Diffusion 1.x and pictures of 640x512 pixels."""

    tokens: Size = 50  # hidden states of the encoder, and tokens that come out
    width: Width = 768  # channels of both
    latent_channels: Width = 4
    positions: Size = 1280  # of the latents after they are halved

    def check(self, stage: str, shape: tuple[int, ...]) -> None:
        """Raise `UserError` for latents `(H, W, C)` of another size."""
        height, width, channels = shape
        if (height // 2 * (width // 2), channels) != (self.positions, self.latent_channels):
            raise UserError(f"Stage {stage!r}: network.picture_adapter of positions={self.positions}, latent_channels="
                            f"{self.latent_channels} for latents of {height}x{width}x{channels}; permitted: positions="
                            f"{height // 2 * (width // 2)}, latent_channels={channels}", "PictureAdapter.positions")


class PictureAdapterNetwork(nn.Module):
    """Hidden states of a picture `[B, 1, M, C]` and its latents `[B, 1, H, W, C2]` to tokens `[B, 1, M, C]`.

    Raises `UserError` for several pictures, and for other sizes.
    """

    config: PictureAdapter
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B 1 M C"], latents: Float[Array, "B G H W C2"]
    ) -> Float[Array, "B 1 M C"]:
        spec = self.config
        if states.shape[1:] != (1, spec.tokens, spec.width) or latents.shape[1] != 1:
            raise UserError(f"hidden states of shape {states.shape} and latents of shape {latents.shape}; permitted: "
                            f"[B, 1, {spec.tokens}, {spec.width}], and those of one picture")
        pooled = nn.max_pool(latents[:, 0].astype(self.dtype), (2, 2), (2, 2))
        rows = Dense(spec.width, dtype=self.dtype, name="latents")(rearrange(pooled, "b h w c -> b c (h w)"))
        tokens = rearrange(jnp.concatenate([states[:, 0].astype(self.dtype), rows], axis=1), "b m c -> b c m")
        mixed = Dense(spec.tokens, kernel_init=_identity, dtype=self.dtype, name="mix")(tokens)
        return rearrange(mixed, "b c m -> b 1 m c")


def _identity(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Float[Array, "N M"]:
    """The first inputs as they are."""
    return jnp.eye(*shape, dtype=dtype)
