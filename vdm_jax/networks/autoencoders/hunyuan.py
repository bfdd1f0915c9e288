"""The autoencoder of HunyuanVideo (Kong et al. 2024, arXiv 2412.03603): causal convolutions with repeated edges, norms
over a clip, and attention of each position to its frame and earlier ones at the coarsest level.

One latent of 4 frames x 8 x 8 pixels after the first frame, of 16 channels. Longer clips are cut into pieces that
overlap, each of which is a clip of its own; where two overlap, the earlier one fades into the later one. Norms see a
piece, so that the sizes of the pieces are part of the model. Those here are of diffusers, 17 frames every 12; the
authors' code cuts at 65 frames every 48 (`piece_frames=64`).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from vdm_jax.attention import Causal
from vdm_jax.configuration import Count, Depth, Length, Positive, Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.causal_config import causal_latents
from vdm_jax.networks.autoencoders.kl import Moments
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.residual import ResidualBlock
from vdm_jax.networks.layers import Dense, GroupNorm, Initializer, fan_in, nearest, silu, zeros

EPSILON = 1e-6
TIME_LEVELS = 2  # of the levels but the coarsest, the last ones halve the frames


@config
class HunyuanAutoencoder:
    """Sizes of an autoencoder of HunyuanVideo; the defaults are those of the released one."""

    channels: Width = 3  # of the video
    widths: Annotated[tuple[Width, ...], Length()] = (128, 256, 512, 512)  # channels by level, the finest first
    blocks: Depth = 2  # residual blocks per level of the encoder; the decoder has one more
    latent_channels: Width = 16
    groups: Count = 32  # of the norms
    attention: bool = True  # in the middle of encoder and decoder
    scale: Positive = 0.476986  # diffusion sees `scale * latents`
    piece_frames: Size = 16  # of a piece after its first frame; three quarters of them later the next one begins
    dtype: str = "float32"  # of the activations

    causal = True
    time_factor = 2**TIME_LEVELS

    def __post_init__(self):
        if any(width % self.groups for width in self.widths) or len(self.widths) <= TIME_LEVELS:
            raise UserError(f"HunyuanAutoencoder.widths={self.widths} with groups={self.groups}; permitted: "
                            f"{TIME_LEVELS + 1} or more multiples of the groups")
        if self.piece_frames % self.multiples[0]:
            raise UserError(f"HunyuanAutoencoder.piece_frames={self.piece_frames}; permitted: {self.multiples[0]}, "
                            f"{2 * self.multiples[0]}, ...")

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return 2 ** (len(self.widths) - 1)

    @property
    def multiples(self) -> tuple[int, int]:
        """What frames encoded and latents decoded at a time are multiples of: a quarter of them overlap."""
        return 4 * self.time_factor, 4

    @property
    def pieces(self) -> tuple[int, int]:
        """Frames encoded and latents decoded at a time, after the first."""
        return self.piece_frames, self.piece_frames // self.time_factor

    def stride(self, frames: int) -> int:
        """From piece to piece of so many frames or latents."""
        return frames - frames // 4

    def latent_frames(self, frames: int) -> int:
        """Latents of a clip. Raises `UserError` for frames that do not fit."""
        return causal_latents(frames, self.time_factor)

    def normalise(self, latents: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Latents as diffusion sees them."""
        return self.scale * latents

    def denormalise(self, latents: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Latents as the decoder sees them."""
        return latents / self.scale


AUTOENCODER_HUNYUAN = HunyuanAutoencoder()


class HunyuanAutoencoderKL(nn.Module):
    """A clip `[B, T, H, W, C]` in [-1, 1] of 1 + 4n frames to moments of latents, and latents to video, as one piece.

    Latents here are as the weights have them; diffusion sees `config.normalise(latents)`. `encode` raises `UserError`
    for frames that do not fit and sides that the factor does not divide.
    """

    config: HunyuanAutoencoder

    def setup(self):
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        self.encoder, self.decoder = HunyuanEncoder(spec), HunyuanDecoder(spec)
        self.quant = Dense(2 * spec.latent_channels, dtype=dtype)
        self.post_quant = Dense(spec.latent_channels, dtype=dtype)

    def encode(self, video: Float[Array, "B T H W C"]) -> Moments:
        """Mean and log-variance of the latents, float32."""
        factor = self.config.factor
        self.config.latent_frames(video.shape[1])
        if video.shape[2] % factor or video.shape[3] % factor:
            raise UserError(f"video of {video.shape[2]}x{video.shape[3]} for an autoencoder of factor {factor}; "
                            f"permitted: multiples of {factor}")
        mean, logvar = jnp.split(self.quant(self.encoder(video)).astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        """Video of latents, float32, not clipped to [-1, 1]."""
        return self.decoder(self.post_quant(latents)).astype(jnp.float32)

    def __call__(self, video: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """The video of the mean latents."""
        return self.decode(self.encode(video).mean)


class RepeatedConvolution(nn.Module):
    """Convolution that sees a frame and those before it. The first frame is repeated before the clip, the outer rows
    and columns around it."""

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)  # frames, rows, columns
    strides: tuple[int, int, int] = (1, 1, 1)
    kernel_init: Initializer = fan_in
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        taps, batch, stride = self.kernel[0], len(x), self.strides[0]
        sides = ((size // 2,) * 2 for size in self.kernel[1:])
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (taps - 1, 0), *sides, (0, 0)), mode="edge")
        last = x.shape[1] - taps
        near = jnp.concatenate([x[:, tap : tap + last + 1 : stride] for tap in range(taps)], axis=-1)
        y = lax.conv_general_dilated(
            rearrange(near, "b t h w c -> (b t) h w c"), rearrange(kernel, "kt kh kw c o -> kh kw (kt c) o"),
            self.strides[1:], "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return rearrange(y, "(b t) h w o -> b t h w o", b=batch) + bias


class RepeatedUpsample(nn.Module):
    """Rows and columns twice and, with `frames`, every frame but the first; then a convolution."""

    frames: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C"]:
        if self.frames:
            x = jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], 2, axis=1)], axis=1)
        return RepeatedConvolution(x.shape[-1], dtype=self.dtype, name="conv")(nearest(x, (2, 2)))


def _block(spec: HunyuanAutoencoder, features: int, name: str) -> ResidualBlock:
    return ResidualBlock(features, (3, 3, 3), "clip", spec.groups, EPSILON, jnp.dtype(spec.dtype),
                         convolutions=RepeatedConvolution, name=name)


def _middle(spec: HunyuanAutoencoder, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    """Two blocks, and attention between them. Made inside the module that calls it."""
    x = _block(spec, x.shape[-1], "middle_in")(x)
    if spec.attention:
        x = Attention(heads=1, pattern=Causal(), joint=False, bias=True, residual=True, dtype=jnp.dtype(spec.dtype),
                      norm=partial(GroupNorm, spec.groups, "clip", EPSILON, name="norm"), name="middle_attention")(x)
    return _block(spec, x.shape[-1], "middle_out")(x)


class HunyuanEncoder(nn.Module):
    """Video to the moments of its latents before their last map, side by side."""

    config: HunyuanAutoencoder

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x, last = RepeatedConvolution(spec.widths[0], dtype=dtype, name="stem")(x), len(spec.widths) - 1
        for i, width in enumerate(spec.widths):
            for j in range(spec.blocks):
                x = _block(spec, width, f"down_{i}_{j}")(x)
            if i < last:
                strides = (2 if i >= last - TIME_LEVELS else 1, 2, 2)
                x = RepeatedConvolution(width, strides=strides, dtype=dtype, name=f"downsample_{i}")(x)
        x = silu(GroupNorm(spec.groups, "clip", EPSILON, name="norm")(_middle(spec, x)))
        return RepeatedConvolution(2 * spec.latent_channels, dtype=dtype, name="out")(x)


class HunyuanDecoder(nn.Module):
    """Latents after their first map to video; levels are numbered from the coarsest."""

    config: HunyuanAutoencoder

    @nn.compact
    def __call__(self, z: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x, last = RepeatedConvolution(spec.widths[-1], dtype=dtype, name="stem")(z), len(spec.widths) - 1
        x = _middle(spec, x)
        for i, width in enumerate(reversed(spec.widths)):
            for j in range(spec.blocks + 1):
                x = _block(spec, width, f"up_{i}_{j}")(x)
            if i < last:
                x = RepeatedUpsample(i >= last - TIME_LEVELS, dtype, name=f"upsample_{i}")(x)
        x = silu(GroupNorm(spec.groups, "clip", EPSILON, name="norm")(x))
        return RepeatedConvolution(spec.channels, dtype=dtype, name="out")(x)
