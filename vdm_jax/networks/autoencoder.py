"""KL autoencoders of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), for images and for video.

Videos are encoded frame by frame. The decoder works frame by frame too, or has layers over time between its own: that
of Stable Video Diffusion (Blattmann et al. 2023, arXiv 2311.15127), which keeps the encoder. A frame of H x W pixels
has latents of H/f x W/f, where f is 2 to the number of levels less one. For clips that do not fit into memory see
`tiling.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoder_blocks import Block, Double, FrameAttention, Halve
from vdm_jax.networks.layers import Convolution, GroupNorm, silu


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """Sizes of a KL autoencoder; the defaults are those of Stable Diffusion 1.x and 2.x (f = 8)."""

    channels: int = 3  # of the video
    widths: tuple[int, ...] = (128, 256, 512, 512)  # channels by level, the finest first
    blocks: int = 2  # residual blocks per level of the encoder; the decoder has one more
    latent_channels: int = 4
    groups: int = 32  # of the norms
    # Diffusion sees `scale * (latents - shift)`, whose standard deviation is about 1.
    scale: float = 0.18215
    shift: float = 0.0
    quant: bool = True  # 1x1 convolution after the encoder
    post_quant: bool = True  # 1x1 convolution before the decoder
    middle_attention: bool = True  # in the middle of encoder and decoder
    decoder: Literal["frames", "temporal"] = "frames"  # temporal: with layers over frames
    attention_kernel: str = "auto"  # see `vdm_jax.attention`
    dtype: str = "float32"  # of the activations; the released weights overflow float16

    def __post_init__(self):
        if not self.widths or min(self.widths) < 1 or any(width % self.groups for width in self.widths):
            raise UserError(f"Autoencoder.widths={self.widths} with groups={self.groups}; permitted: one or more "
                            "levels, in multiples of the groups")
        if min(self.blocks, self.latent_channels, self.channels) < 1 or self.scale <= 0:
            raise UserError(f"Autoencoder: blocks={self.blocks}, latent_channels={self.latent_channels}, "
                            f"channels={self.channels}, scale={self.scale}; permitted: positive")
        if self.decoder not in ("frames", "temporal"):
            raise UserError(f"Autoencoder.decoder={self.decoder!r}; permitted: 'frames', 'temporal'")

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return 2 ** (len(self.widths) - 1)

    def normalise(self, latents: Float[Array, ...]) -> Float[Array, ...]:
        """Latents as diffusion sees them."""
        return self.scale * (latents - self.shift)

    def denormalise(self, latents: Float[Array, ...]) -> Float[Array, ...]:
        """Latents as the decoder sees them."""
        return latents / self.scale + self.shift


AUTOENCODER_F8 = Autoencoder()
AUTOENCODER_F4 = Autoencoder(widths=(128, 256, 512), scale=0.08333)  # of Stable Diffusion's x4 upscaler
AUTOENCODER_SVD = Autoencoder(decoder="temporal", post_quant=False)  # Stable Video Diffusion


class Moments(NamedTuple):
    """The normal distribution of latents that a video is encoded as."""

    mean: Float[Array, "b t h w c"]  # also the mode
    logvar: Float[Array, "b t h w c"]  # within [-30, 20]

    def sample(self, noise: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """A draw, given standard normal noise."""
        return self.mean + jnp.exp(self.logvar / 2) * noise


class AutoencoderKL(nn.Module):
    """Video `[B, T, H, W, C]` in [-1, 1] to moments of latents, and latents to video.

    Latents here are as the weights have them; diffusion sees `config.normalise(latents)`. `encode` raises `UserError`
    for frames that the factor does not divide.
    """

    config: Autoencoder

    def setup(self):
        spec = self.config
        pointwise = {"kernel": (1, 1, 1), "dtype": jnp.dtype(spec.dtype)}
        self.encoder, self.decoder = Encoder(spec), Decoder(spec)
        if spec.quant:
            self.quant = Convolution(2 * spec.latent_channels, **pointwise)
        if spec.post_quant:
            self.post_quant = Convolution(spec.latent_channels, **pointwise)

    def encode(self, video: Float[Array, "b t h w c"]) -> Moments:
        """Mean and log-variance of the latents of each frame, float32."""
        factor = self.config.factor
        if video.shape[2] % factor or video.shape[3] % factor:
            raise UserError(f"video of {video.shape[2]}x{video.shape[3]} for an autoencoder of factor {factor}; "
                            f"permitted: multiples of {factor}")
        moments = self.encoder(video)
        moments = self.quant(moments) if self.config.quant else moments
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 o"]:
        """Video of latents, float32, not clipped to [-1, 1]."""
        latents = self.post_quant(latents) if self.config.post_quant else latents
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """The video of the mean latents."""
        return self.decode(self.encode(video).mean)


def _options(spec: Autoencoder) -> dict[str, Any]:
    return {"groups": spec.groups, "dtype": jnp.dtype(spec.dtype)}


class Middle(nn.Module):
    """Two blocks at the coarsest level, with attention between them."""

    config: Autoencoder
    temporal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        spec = self.config
        x = Block(x.shape[-1], self.temporal, _options(spec), name="in")(x)
        if spec.middle_attention:
            x = FrameAttention(spec.groups, spec.attention_kernel, jnp.dtype(spec.dtype), name="frame_attention")(x)
        return Block(x.shape[-1], self.temporal, _options(spec), name="out")(x)


class Encoder(nn.Module):
    """Video to the moments of its latents, side by side."""

    config: Autoencoder

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c2"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x = Convolution(spec.widths[0], dtype=dtype, name="stem")(video)
        for i, width in enumerate(spec.widths):
            for j in range(spec.blocks):
                x = Block(width, False, _options(spec), name=f"down_{i}_{j}")(x)
            if i < len(spec.widths) - 1:
                x = Halve(dtype, name=f"downsample_{i}")(x)
        x = Middle(spec, name="middle")(x)
        x = silu(GroupNorm(spec.groups, epsilon=1e-6, name="norm")(x))
        return Convolution(2 * spec.latent_channels, dtype=dtype, name="out")(x)


class Decoder(nn.Module):
    """Latents to video; levels are numbered from the coarsest."""

    config: Autoencoder

    @nn.compact
    def __call__(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 o"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        temporal = spec.decoder == "temporal"
        x = Convolution(spec.widths[-1], dtype=dtype, name="stem")(latents)
        x = Middle(spec, temporal, name="middle")(x)
        for i, width in enumerate(reversed(spec.widths)):
            for j in range(spec.blocks + 1):
                x = Block(width, temporal, _options(spec), name=f"up_{i}_{j}")(x)
            if i < len(spec.widths) - 1:
                x = Double(dtype, name=f"upsample_{i}")(x)
        x = silu(GroupNorm(spec.groups, epsilon=1e-6, name="norm")(x))
        x = Convolution(spec.channels, dtype=dtype, name="out")(x)
        if temporal:
            x = Convolution(spec.channels, (3, 1, 1), dtype=dtype, name="out_temporal")(x)
        return x
