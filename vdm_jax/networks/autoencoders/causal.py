"""The causal autoencoder: video to moments of latents and back, whole or piece by piece. Its sizes are in
`causal_config.py`, its layers in `causal_blocks.py`.

    moments, state = module.apply({"params": params}, piece, method="encode", mutable=["cache"])
    moments, state = module.apply({"params": params, **state}, next_piece, method="encode", mutable=["cache"])

As every layer is a function of a frame and of a fixed number of frames before it, pieces give what the whole clip
gives.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.causal_blocks import (
    CausalConvolution,
    CausalMiddle,
    Downsample,
    PositionNorm,
    Upsample,
    begins,
    causal_block,
    fold,
    folded_means,
    unfold,
    unfolded_copies,
)
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.autoencoders.kl import Moments
from vdm_jax.networks.layers import silu
from vdm_jax.parallel.rules import shard_along


class CausalAutoencoderKL(nn.Module):
    """Video `[B, T, H, W, C]` in [-1, 1] to moments of latents, and latents to video.

    Latents here are as the weights have them; diffusion sees `config.normalise(latents)`. `encode` raises `UserError`
    for frames that do not fit: 1 + 4n at the beginning of a clip and 4n later, with four frames per latent, of sides
    that the factor divides. The mesh axis `context` splits rows, where it divides them.
    """

    config: CausalAutoencoder

    def setup(self):
        spec = self.config
        pointwise = {"kernel": (1, 1, 1), "dtype": jnp.dtype(spec.dtype)}
        self.encoder, self.decoder = CausalEncoder(spec), CausalDecoder(spec)
        self.quant = CausalConvolution(2 * spec.latent_channels, **pointwise)
        self.post_quant = CausalConvolution(spec.latent_channels, **pointwise)

    def encode(self, video: Float[Array, "B T H W C"]) -> Moments:
        """Mean and log-variance of the latents, float32."""
        spec = self.config
        if begins(self.encoder):
            spec.latent_frames(video.shape[1])
        elif video.shape[1] % spec.time_factor or not video.shape[1]:
            raise UserError(f"a later piece of {video.shape[1]} frames for a causal autoencoder; permitted: multiples "
                            f"of {spec.time_factor}")
        if video.shape[2] % spec.factor or video.shape[3] % spec.factor:
            raise UserError(f"video of {video.shape[2]}x{video.shape[3]} for an autoencoder of factor {spec.factor}; "
                            f"permitted: multiples of {spec.factor}")
        moments = self.quant(self.encoder(fold(shard_along(video, "height", must=False), spec.patch)))
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        """Video of latents, float32, not clipped to [-1, 1]."""
        latents = self.post_quant(shard_along(latents, "height", must=False))
        return unfold(self.decoder(latents).astype(jnp.float32), self.config.patch)

    def __call__(self, video: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """The video of the mean latents."""
        return self.decode(self.encode(video).mean)


class CausalEncoder(nn.Module):
    """Video to the moments of its latents, side by side."""

    config: CausalAutoencoder

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x = CausalConvolution(spec.widths[0], dtype=dtype, name="stem")(x)
        for i, width in enumerate(spec.widths):
            before, last = x, i == len(spec.widths) - 1
            for j in range(spec.blocks):
                x = causal_block(width, dtype, f"down_{i}_{j}")(x)
            halved = not last and spec.halve_frames[i]
            if not last:
                x = Downsample(halved, dtype, name=f"downsample_{i}")(x)
            if spec.shortcuts:
                x = x + folded_means(before, 1 + halved, 1 if last else 2, width)
        x = CausalMiddle(spec.attention_kernel, dtype, name="middle")(x)
        x = silu(PositionNorm(name="norm")(x))
        return CausalConvolution(2 * spec.latent_channels, dtype=dtype, name="out")(x)


class CausalDecoder(nn.Module):
    """Latents to video; levels are numbered from the coarsest."""

    config: CausalAutoencoder

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        widths = spec.decoder_widths or spec.widths
        x = CausalConvolution(widths[-1], dtype=dtype, name="stem")(x)
        x = CausalMiddle(spec.attention_kernel, dtype, name="middle")(x)
        for i, (width, doubled) in enumerate(zip(reversed(widths), (*reversed(spec.halve_frames), None), strict=True)):
            before = x
            for j in range(spec.blocks + 1):
                x = causal_block(width, dtype, f"up_{i}_{j}")(x)
            if doubled is None:
                continue
            x = Upsample(width if spec.shortcuts else width // 2, doubled, dtype, name=f"upsample_{i}")(x)
            if spec.shortcuts:
                copies = unfolded_copies(before, 1 + doubled, 2, width)
                x = x + copies[:, copies.shape[1] - x.shape[1] :]  # the first frame is not doubled
        x = silu(PositionNorm(name="norm")(x))
        return CausalConvolution(spec.channels * spec.patch**2, dtype=dtype, name="out")(x)
