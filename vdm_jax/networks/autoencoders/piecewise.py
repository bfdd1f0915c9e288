"""The autoencoder of CogVideoX (Yang et al. 2024, arXiv 2408.06072): causal convolutions, and norms over a piece.

Convolutions see earlier frames only and keep those that the next piece needs, but group norms have the statistics of a
piece. What comes out depends on where a clip is cut, so the sizes of the pieces are part of the model: 8 frames are
encoded and 2 latents decoded at a time, the first piece with what makes no whole one. The norms of the decoder are
scaled and shifted by the latents (Zheng et al. 2022, arXiv 2209.09002). Frames are halved by means of two and doubled
by repeating them, but for the first one, which a piece of an odd number of frames begins with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import Count, Depth, Length, Positive, Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.blocks import Double, Halve
from vdm_jax.networks.autoencoders.causal_blocks import CausalConvolution
from vdm_jax.networks.autoencoders.causal_config import causal_latents
from vdm_jax.networks.autoencoders.kl import Moments
from vdm_jax.networks.blocks.residual import ResidualBlock
from vdm_jax.networks.layers import GroupNorm, silu
from vdm_jax.parallel.rules import shard_along

EPSILON = 1e-6


@config
class PiecewiseAutoencoder:
    """Sizes of a causal autoencoder with norms over pieces; the defaults are those of CogVideoX-2B."""

    channels: Width = 3  # of the video
    widths: Annotated[tuple[Width, ...], Length()] = (128, 256, 256, 512)  # channels by level, the finest first
    blocks: Depth = 3  # residual blocks per level of the encoder; the decoder has one more
    latent_channels: Width = 16
    groups: Count = 32  # of the norms
    time_factor: Size = 4  # frames per latent after the first, a power of two up to that of pixels
    scale: Positive = 1.15258426  # diffusion sees `scale * latents`; 0.7 in CogVideoX-5B and 1.5
    encode_frames: Size = 8  # encoded at a time
    decode_frames: Size = 2  # latents decoded at a time
    dtype: str = "float32"  # of the activations

    causal = True

    def __post_init__(self):
        if any(width % self.groups for width in self.widths):
            raise UserError(f"PiecewiseAutoencoder.widths={self.widths} with groups={self.groups}; permitted: "
                            "multiples of the groups")
        permitted = [2**i for i in range(len(self.widths))]
        if self.time_factor not in permitted:
            raise UserError(f"PiecewiseAutoencoder.time_factor={self.time_factor}; permitted: "
                            f"{', '.join(map(str, permitted))}")
        for name, multiple in zip(("encode_frames", "decode_frames"), self.multiples, strict=True):
            if getattr(self, name) % multiple:
                raise UserError(f"PiecewiseAutoencoder.{name}={getattr(self, name)}; permitted: {multiple}, "
                                f"{2 * multiple}, ...")

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return 2 ** (len(self.widths) - 1)

    @property
    def multiples(self) -> tuple[int, int]:
        """What frames encoded and latents decoded at a time are multiples of: a later piece of an odd number would be
        taken for one that begins a clip."""
        return max(2, self.time_factor), 2

    @property
    def pieces(self) -> tuple[int, int]:
        """Frames encoded and latents decoded at a time."""
        return self.encode_frames, self.decode_frames

    def first_piece(self, length: int, frames: int) -> int:
        """Frames of the first piece of so many, at `frames` at a time."""
        return min(length, frames + length % frames)

    def latent_frames(self, frames: int) -> int:
        """Latents of a clip, an odd number. Raises `UserError` for frames that do not fit."""
        return 1 + 2 * (causal_latents(frames, 2 * self.time_factor) - 1)

    def normalise(self, latents: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Latents as diffusion sees them."""
        return self.scale * latents

    def denormalise(self, latents: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Latents as the decoder sees them."""
        return latents / self.scale


AUTOENCODER_COGVIDEOX = PiecewiseAutoencoder()


class PiecewiseAutoencoderKL(nn.Module):
    """A piece of video `[B, T, H, W, C]` in [-1, 1] to moments of latents, and of latents to video.

    Pieces are as of `causal_blocks.py`. Latents here are as the weights have them; diffusion sees
    `config.normalise(latents)`. `encode` raises `UserError` for sides that the factor does not divide.
    """

    config: PiecewiseAutoencoder

    def setup(self):
        self.encoder, self.decoder = PiecewiseEncoder(self.config), PiecewiseDecoder(self.config)

    def encode(self, video: Float[Array, "B T H W C"]) -> Moments:
        """Mean and log-variance of the latents, float32."""
        factor = self.config.factor
        if video.shape[2] % factor or video.shape[3] % factor:
            raise UserError(f"video of {video.shape[2]}x{video.shape[3]} for an autoencoder of factor {factor}; "
                            f"permitted: multiples of {factor}")
        moments = self.encoder(shard_along(video, "height", must=False)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        """Video of latents, float32, not clipped to [-1, 1]."""
        return self.decoder(shard_along(latents, "height", must=False)).astype(jnp.float32)

    def __call__(self, video: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """The video of the mean latents."""
        return self.decode(self.encode(video).mean)


def split_first(x: Float[Array, "B T H W C"]) -> tuple[Float[Array, "B T1 H W C"], Float[Array, "B T2 H W C"]]:
    """The frame that begins a clip, where a piece has an odd number, and the others."""
    return x[:, : x.shape[1] % 2], x[:, x.shape[1] % 2 :]


def halve_frames(x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H W C"]:
    """Means of two frames."""
    first, rest = split_first(x)
    means = rest.reshape(len(x), -1, 2, *x.shape[2:]).mean(2) if rest.shape[1] else rest
    return jnp.concatenate([first, means], axis=1)


def double_frames(x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H W C"]:
    """Every frame twice."""
    first, rest = split_first(x)
    return jnp.concatenate([first, jnp.repeat(rest, 2, axis=1)], axis=1)


def stretched(z: Float[Array, "B T H W C"], shape: tuple[int, int, int]) -> Float[Array, "B T2 H2 W2 C"]:
    """Latents repeated to frames, rows and columns, the first frame of a clip apart."""
    def repeated(part: Array, frames: int) -> Array:
        for axis, size in ((1, frames), (2, shape[1]), (3, shape[2])):
            part = jnp.repeat(part, size // max(part.shape[axis], 1), axis=axis)
        return part

    first, rest = split_first(z)
    return jnp.concatenate([repeated(first, first.shape[1]), repeated(rest, shape[0] - first.shape[1])], axis=1)


class LatentNorm(nn.Module):
    """Group norm over a piece, scaled and shifted by maps of the latents."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], z: Float[Array, "B T2 H2 W2 Z"]) -> Float[Array, "B T H W C"]:
        z = stretched(z, x.shape[1:4])
        scale, shift = (CausalConvolution(x.shape[-1], (1, 1, 1), dtype=self.dtype, name=name)(z)
                        for name in ("scale_map", "shift_map"))
        return GroupNorm(self.groups, "clip", EPSILON, name="norm")(x) * scale + shift


def _block(spec: PiecewiseAutoencoder, features: int, name: str, z: Array | None = None) -> ResidualBlock:
    """A residual block with the norms of the encoder, or with those that see latents."""
    def conditioned(name: str) -> Callable[..., Array]:
        return lambda h, modulation=None: LatentNorm(spec.groups, jnp.dtype(spec.dtype), name=name)(h, z)

    return ResidualBlock(features, (3, 3, 3), "clip", spec.groups, EPSILON, jnp.dtype(spec.dtype),
                         norms=None if z is None else conditioned,
                         convolutions=partial(CausalConvolution, before="first"), name=name)


class PiecewiseEncoder(nn.Module):
    """Video to the moments of its latents, side by side."""

    config: PiecewiseAutoencoder

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x = CausalConvolution(spec.widths[0], before="first", dtype=dtype, name="stem")(x)
        for i, width in enumerate(spec.widths):
            for j in range(spec.blocks):
                x = _block(spec, width, f"down_{i}_{j}")(x)
            if i < len(spec.widths) - 1:
                x = halve_frames(x) if 2**i < spec.time_factor else x
                x = Halve(dtype, name=f"downsample_{i}")(x)
        for name in ("middle_in", "middle_out"):
            x = _block(spec, x.shape[-1], name)(x)
        x = silu(GroupNorm(spec.groups, "clip", EPSILON, name="norm")(x))
        return CausalConvolution(2 * spec.latent_channels, before="first", dtype=dtype, name="out")(x)


class PiecewiseDecoder(nn.Module):
    """Latents to video; levels are numbered from the coarsest."""

    config: PiecewiseAutoencoder

    @nn.compact
    def __call__(self, z: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x = CausalConvolution(spec.widths[-1], before="first", dtype=dtype, name="stem")(z)
        for name in ("middle_in", "middle_out"):
            x = _block(spec, x.shape[-1], name, z)(x)
        for i, width in enumerate(reversed(spec.widths)):
            for j in range(spec.blocks + 1):
                x = _block(spec, width, f"up_{i}_{j}", z)(x)
            if i < len(spec.widths) - 1:
                x = double_frames(x) if 2**i < spec.time_factor else x
                x = Double(dtype, name=f"upsample_{i}")(x)
        x = silu(LatentNorm(spec.groups, dtype, name="norm")(x, z))
        return CausalConvolution(spec.channels, before="first", dtype=dtype, name="out")(x)
