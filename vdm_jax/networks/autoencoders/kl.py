"""The KL autoencoder: video to moments of latents and back. Its kinds and sizes are in `autoencoders/config.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.blocks import Block, Double, Halve, frame_attention
from vdm_jax.networks.autoencoders.clip import ClipDecoder, ClipEncoder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.layers import Convolution, GroupNorm, silu


class Moments(NamedTuple):
    """The normal distribution of latents that a video is encoded as."""

    mean: Float[Array, "B T H W C"]  # also the mode
    logvar: Float[Array, "B T H W C"]  # within [-30, 20]

    def sample(self, noise: Float[Array, "B T H W C"] | float) -> Float[Array, "B T H W C"]:
        """A draw, given standard normal noise."""
        return self.mean + jnp.exp(self.logvar / 2) * noise

    def divergence(self) -> Float[Array, " ..."]:
        """KL divergence from the standard normal distribution, nats, number by number."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.logvar) - 1 - self.logvar)


class AutoencoderKL(nn.Module):
    """Video `[B, T, H, W, C]` in [-1, 1] to moments of latents, and latents to video.

    Latents here are as the weights have them; diffusion sees `config.normalise(latents)`. `encode` raises `UserError`
    for frames that the factor does not divide, and clips that the factor of time does not.
    """

    config: Autoencoder

    def setup(self):
        spec = self.config
        pointwise = {"kernel": (1, 1, 1), "dtype": jnp.dtype(spec.dtype)}
        encoder, decoder = (ClipEncoder, ClipDecoder) if spec.layout == "clip" else (Encoder, Decoder)
        self.encoder, self.decoder = encoder(spec), decoder(spec)
        if spec.quant:
            self.quant = Convolution(2 * spec.latent_channels, **pointwise)
        if spec.post_quant:
            self.post_quant = Convolution(spec.latent_channels, **pointwise)

    def encode(self, video: Float[Array, "B T H W C"]) -> Moments:
        """Mean and log-variance of the latents, float32: of each frame, or of every `time_factor` frames."""
        factor, frames = self.config.factor, self.config.time_factor
        if video.shape[1] % frames:
            raise UserError(f"video of {video.shape[1]} frames for an autoencoder of {frames} frames per latent; "
                            f"permitted: multiples of {frames}")
        if video.shape[2] % factor or video.shape[3] % factor:
            raise UserError(f"video of {video.shape[2]}x{video.shape[3]} for an autoencoder of factor {factor}; "
                            f"permitted: multiples of {factor}")
        moments = self.encoder(video)
        moments = self.quant(moments) if self.config.quant else moments
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        """Video of latents, float32, not clipped to [-1, 1]."""
        latents = self.post_quant(latents) if self.config.post_quant else latents
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, video: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """The video of the mean latents."""
        return self.decode(self.encode(video).mean)


def _options(spec: Autoencoder) -> dict[str, Any]:
    """Of residual blocks."""
    return {"groups": spec.groups, "dtype": jnp.dtype(spec.dtype), "temporal": spec.temporal_kernel}


class Middle(nn.Module):
    """Two blocks at the coarsest level, with attention between them."""

    config: Autoencoder
    temporal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        spec = self.config
        x = Block(x.shape[-1], self.temporal, _options(spec), name="in")(x)
        attention = (spec.groups, spec.attention_kernel, jnp.dtype(spec.dtype))
        if spec.middle_attention:
            x = frame_attention(*attention, "frame_attention")(x)
        if spec.temporal_attention:
            x = frame_attention(*attention, "temporal_attention", over_time=True)(x)
        return Block(x.shape[-1], self.temporal, _options(spec), name="out")(x)


class Encoder(nn.Module):
    """Video to the moments of its latents, side by side."""

    config: Autoencoder

    @nn.compact
    def __call__(self, video: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C2"]:
        spec, dtype, temporal = self.config, jnp.dtype(self.config.dtype), self.config.temporal_kernel
        x = Convolution(spec.widths[0], dtype=dtype, temporal=temporal, name="stem")(video)
        for i, width in enumerate(spec.widths):
            for j in range(spec.blocks):
                x = Block(width, False, _options(spec), name=f"down_{i}_{j}")(x)
            if i < len(spec.widths) - 1:
                x = Halve(dtype, temporal, name=f"downsample_{i}")(x)
        x = Middle(spec, name="middle")(x)
        x = silu(GroupNorm(spec.groups, epsilon=1e-6, name="norm")(x))
        return Convolution(2 * spec.latent_channels, dtype=dtype, temporal=temporal, name="out")(x)


class Decoder(nn.Module):
    """Latents to video; levels are numbered from the coarsest."""

    config: Autoencoder

    @nn.compact
    def __call__(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 O"]:
        spec, dtype, kernel = self.config, jnp.dtype(self.config.dtype), self.config.temporal_kernel
        temporal = spec.decoder == "temporal"
        x = Convolution(spec.widths[-1], dtype=dtype, temporal=kernel, name="stem")(latents)
        x = Middle(spec, temporal, name="middle")(x)
        for i, width in enumerate(reversed(spec.widths)):
            for j in range(spec.blocks + 1):
                x = Block(width, temporal, _options(spec), name=f"up_{i}_{j}")(x)
            if i < len(spec.widths) - 1:
                x = Double(dtype, kernel, name=f"upsample_{i}")(x)
        x = silu(GroupNorm(spec.groups, epsilon=1e-6, name="norm")(x))
        x = Convolution(spec.channels, dtype=dtype, temporal=kernel, name="out")(x)
        if temporal:
            x = Convolution(spec.channels, (3, 1, 1), dtype=dtype, name="out_temporal")(x)
        return x
