"""The networks of LTX-Video's autoencoders; their sizes are in `ltx_config.py`.

Latents are normalised here, by means and deviations that are stored among the weights.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.causal_blocks import (
    CausalConvolution,
    begins,
    convolve_later,
    fold,
    folded_means,
    unfold,
)
from vdm_jax.networks.autoencoders.kl import Moments
from vdm_jax.networks.autoencoders.ltx_config import LTXAutoencoder
from vdm_jax.networks.blocks.sinusoids import sinusoids
from vdm_jax.networks.layers import Dense, add_residual, fan_in, silu, zeros
from vdm_jax.networks.sharded_convolution import sharded_convolve
from vdm_jax.parallel.rules import shard_along

NOISE = "noise"  # stream of random numbers of the decoder; without it no noise is added
FEATURES = 256  # of the code of the time
STEPS = {"space": (1, 2), "time": (2, 1), "both": (2, 2)}  # frames, and pixels of a side, folded into channels


class LTXAutoencoderKL(nn.Module):
    """Video `[B, T, H, W, C]` in [-1, 1] to moments of latents, and latents to video.

    Latents are normalised. `encode` raises `UserError` for frames that do not fit (1 + 8n at the beginning of a clip)
    and sides that the factor does not divide. It takes a clip in pieces, as of `causal_blocks.py`; `decode` takes it
    whole, and draws its noise from the stream `noise`.
    """

    config: LTXAutoencoder

    def setup(self):
        spec = self.config
        self.encoder, self.decoder = LTXEncoder(spec), LTXDecoder(spec)
        self.mean = self.param("mean", zeros, (spec.latent_channels,))
        self.std = self.param("std", nn.initializers.ones_init(), (spec.latent_channels,))

    def encode(self, video: Float[Array, "B T H W C"]) -> Moments:
        """Mean and log-variance of the latents, float32."""
        spec = self.config
        if begins(self.encoder):
            spec.latent_frames(video.shape[1])
        if video.shape[2] % spec.factor or video.shape[3] % spec.factor:
            raise UserError(f"video of {video.shape[2]}x{video.shape[3]} for an autoencoder of factor {spec.factor}; "
                            f"permitted: multiples of {spec.factor}")
        moments = self.encoder(fold(shard_along(video, "height", must=False), spec.patch)).astype(jnp.float32)
        # One log-variance for all channels of a latent.
        mean, logvar = moments[..., :-1], jnp.broadcast_to(moments[..., -1:], (*moments.shape[:-1],
                                                                               spec.latent_channels))
        return Moments((mean - self.mean) / self.std, jnp.clip(logvar, -30.0, 20.0) - 2 * jnp.log(self.std))

    def decode(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        """Video of latents, float32, not clipped to [-1, 1]."""
        spec = self.config
        if spec.timed and self.has_rng(NOISE):
            noise = jax.random.normal(self.make_rng(NOISE), latents.shape)
            latents = (1 - spec.decode_noise) * latents + spec.decode_noise * noise
        latents = shard_along(latents * self.std + self.mean, "height", must=False)
        return unfold(self.decoder(latents).astype(jnp.float32), spec.patch)

    def __call__(self, video: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """The video of the mean latents."""
        return self.decode(self.encode(video).mean)


class EdgeConvolution(nn.Module):
    """Convolution of three frames, rows and columns that repeats the first and the last frame."""

    features: int
    size: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W O"]:
        kernel = self.param("kernel", fan_in, (*(self.size,) * 3, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (self.size // 2,) * 2, (0, 0), (0, 0), (0, 0)), mode="edge")
        return sharded_convolve(lambda x, k, strides, causal: convolve_later(x, k), x, kernel, (1, 1), "height") + bias


def convolution(features: int, causal: bool, dtype: jnp.dtype, name: str, size: int = 3) -> nn.Module:
    """Of the encoder, or of the decoder, which sees later frames."""
    if causal:
        return CausalConvolution(features, (size,) * 3, before="first", dtype=dtype, name=name)
    return EdgeConvolution(features, size, dtype, name=name)


def pixel_norm(x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    """Division of each position's channels by the root of their mean square, float32."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + 1e-8)).astype(x.dtype)


class TimeCode(nn.Module):
    """A time of 0 to 1000 as a vector."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, time: Float[Array, ""]) -> Float[Array, " C"]:
        code = sinusoids(time, FEATURES, order="cos_sin", endpoint=False)
        hidden = silu(Dense(self.features, dtype=self.dtype, name="expand")(code))
        return Dense(self.features, dtype=self.dtype, name="out")(hidden)


class LTXBlock(nn.Module):
    """Norm, SiLU and convolution, twice; scaled and shifted by a time, with noise of its own, where there are such."""

    features: int
    causal: bool
    spec: LTXAutoencoder
    noise: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], code: Float[Array, " E"] | None = None
                 ) -> Float[Array, "B T H W O"]:
        dtype, width = jnp.dtype(self.spec.dtype), x.shape[-1]
        table = jnp.zeros((4, 1))
        if code is not None:
            table = self.param("table", nn.initializers.normal(width**-0.5), (4, width)) + code.reshape(4, width)
        h = x
        for i, name in enumerate(("in", "out")):
            h = pixel_norm(h)
            if code is not None:
                h = h * (1 + table[2 * i + 1]) + table[2 * i]
            h = convolution(self.features, self.causal, dtype, f"conv_{name}")(silu(h))
            if self.noise:
                amount = self.param(f"noise_{name}", zeros, (width,))
                if self.has_rng(NOISE):  # the same for all frames and samples
                    h = h + jax.random.normal(self.make_rng(NOISE), (*h.shape[2:4], 1)) * amount
        if width != self.features:
            x = nn.LayerNorm(epsilon=self.spec.epsilon, dtype=dtype, name="norm_shortcut")(x)
            x = convolution(self.features, self.causal, dtype, "shortcut", size=1)(x)
        return add_residual(x, h.astype(x.dtype))


class FoldedDownsample(nn.Module):
    """A convolution whose blocks of frames, rows and columns are folded into channels, and the means of blocks of its
    input. The first frame of a clip is there twice, so that it makes a block of its own."""

    features: int
    frames: int
    side: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        p, q = self.frames, self.side
        x = jnp.concatenate([x[:, : p - 1], x], axis=1) if begins(self) else x
        h = convolution(self.features // (p * q * q), True, self.dtype, "conv")(x)
        h = rearrange(h, "b (t p) (h q) (w r) c -> b t h w (c p q r)", p=p, q=q, r=q)
        return h + folded_means(x, p, q, self.features)


class LTXEncoder(nn.Module):
    """Video to means of its latents and one log-variance, side by side."""

    config: LTXAutoencoder

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        x = convolution(spec.widths[0], True, dtype, "stem")(x)
        for i, (width, way) in enumerate(zip((*spec.widths[1:], spec.out_width), spec.shrink, strict=True)):
            for j in range(spec.blocks[i]):
                x = LTXBlock(x.shape[-1], True, spec, name=f"down_{i}_{j}")(x)
            if way == "conv":
                x = CausalConvolution(x.shape[-1], stride=2, strides=(2, 2), before="first", dtype=dtype,
                                      name=f"downsample_{i}")(x)
            elif way != "none":
                x = FoldedDownsample(width, *STEPS[way], dtype, name=f"downsample_{i}")(x)
            if not spec.folds and x.shape[-1] != width:
                x = LTXBlock(width, True, spec, name=f"widen_{i}")(x)
        for j in range(spec.blocks[-1]):
            x = LTXBlock(x.shape[-1], True, spec, name=f"middle_{j}")(x)
        return convolution(spec.latent_channels + 1, True, dtype, "out")(silu(pixel_norm(x)))


class FoldedUpsample(nn.Module):
    """A convolution whose channels become blocks of two frames, rows and columns, without the first frame; with
    `shortcut` its input in such blocks is added."""

    narrowing: int
    shortcut: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        def blocks(h: Array) -> Array:
            return rearrange(h, "b t h w (c p q r) -> b (t p) (h q) (w r) c", p=2, q=2, r=2)[:, 1:]

        h = blocks(convolution(8 * x.shape[-1] // self.narrowing, False, self.dtype, "conv")(x))
        return h + jnp.tile(blocks(x), 8 // self.narrowing) if self.shortcut else h


class LTXDecoder(nn.Module):
    """Latents to video; levels are numbered from the coarsest."""

    config: LTXAutoencoder

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        time = None
        if spec.timed:
            time = self.param("time_scale", nn.initializers.constant(1000.0), ()) * spec.decode_time

        def code(features: int, name: str) -> Array | None:
            return None if time is None else TimeCode(features, dtype, name=name)(time)

        x = convolution(spec.decoder_widths[-1], False, dtype, "stem")(x)
        *noise, of_middle = spec.noise
        vector = code(4 * x.shape[-1], "time_middle")
        for j in range(spec.decoder_blocks[-1]):
            x = LTXBlock(x.shape[-1], False, spec, of_middle, name=f"middle_{j}")(x, vector)
        levels = zip(spec.decoder_widths, spec.decoder_blocks[:-1], spec.grow, noise, strict=True)
        for i, (width, blocks, grows, noisy) in enumerate(reversed([*levels])):
            inner = width // spec.narrowing
            if spec.narrowing == 1 and x.shape[-1] != inner:
                x = LTXBlock(inner, False, spec, noisy, name=f"narrow_{i}")(x)
            vector = code(4 * inner, f"time_{i}")
            if grows:
                x = FoldedUpsample(spec.narrowing, spec.shortcuts, dtype, name=f"upsample_{i}")(x)
            for j in range(blocks):
                x = LTXBlock(inner, False, spec, noisy, name=f"up_{i}_{j}")(x, vector)
        x, vector = pixel_norm(x), code(2 * x.shape[-1], "time_out")
        if vector is not None:
            width = x.shape[-1]
            table = self.param("table", nn.initializers.normal(width**-0.5), (2, width)) + vector.reshape(2, width)
            x = x * (1 + table[1]) + table[0]
        return convolution(spec.channels * spec.patch**2, False, dtype, "out")(silu(x))
