"""Layers of the causal autoencoders, which take a clip whole or piece by piece with the same result.

What a layer needs of the frames before a piece is in the collection `cache`. Where there is none, a clip begins: frames
before it are zeros, and its first frame is neither merged with others nor doubled. Applied with `mutable=["cache"]`, a
module returns the cache for the next piece.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.attention import Spatial
from vdm_jax.networks.autoencoders.blocks import Halve
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.residual import ResidualBlock
from vdm_jax.networks.layers import Initializer, convolve_frames, depth_to_time, fan_in, nearest, zeros
from vdm_jax.networks.sharded_convolution import sharded_convolve

CACHE = "cache"  # collection of what later pieces of a clip need
LEAST_NORM = 1e-12  # of a position's channels


def begins(module: nn.Module) -> bool:
    """Whether a clip begins with the frames that a module is given, rather than going on."""
    return not module.variables.get(CACHE)


def convolve_later(
    x: Float[Array, "B T H W C"], kernel: Float[Array, "kt kh kw C O"], stride: int = 1
) -> Float[Array, "B T2 H W O"]:
    """Convolution over frames without padding, with the stride, and over rows and columns with 'same' padding."""
    taps = kernel.shape[0]
    frames = max((x.shape[1] - taps) // stride + 1, 0)
    near = jnp.concatenate([x[:, tap : tap + frames * stride : stride] for tap in range(taps)], axis=-1)
    kernel = rearrange(kernel, "kt kh kw c o -> kh kw (kt c) o")
    if kernel.shape[:2] == (1, 1):
        return near @ kernel[0, 0]
    y = convolve_frames(rearrange(near, "b t h w c -> (b t) h w c"), kernel, (1, 1))
    return rearrange(y, "(b t) h w o -> b t h w o", b=len(x))


class CausalConvolution(nn.Module):
    """Convolution that sees a frame and those before it."""

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)  # frames, rows, columns
    stride: int = 1  # over frames
    before: Literal["zeros", "first", "nothing"] = "zeros"  # the first frame of a clip; first: itself, repeated
    kernel_init: Initializer = fan_in
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)

        def convolve(x: Array, kernel: Array, strides: tuple[int, int], causal: bool) -> Array:
            return convolve_later(x, kernel, self.stride)

        # Frames follow one another, so that a mesh splits rows.
        return sharded_convolve(convolve, self._after_past(x.astype(self.dtype)), kernel, (1, 1), "height") + bias

    def _after_past(self, x: Array) -> Array:
        """The frames after those of before that the kernel reaches to, of which the last are kept."""
        past = self.kernel[0] - self.stride
        if past <= 0:
            return x
        if not begins(self):
            x = jnp.concatenate([self.get_variable(CACHE, "frames"), x], axis=1)
        elif self.before == "zeros":
            x = jnp.pad(x, ((0, 0), (past, 0), (0, 0), (0, 0), (0, 0)))
        elif self.before == "first":
            x = jnp.pad(x, ((0, 0), (past, 0), (0, 0), (0, 0), (0, 0)), mode="edge")
        if self.is_mutable_collection(CACHE) and not self.is_initializing():
            self.put_variable(CACHE, "frames", x[:, x.shape[1] - past :])
        return x


class PositionNorm(nn.Module):
    """Division of each position's channels by the root of their mean square, then a learned scale; in float32. Nothing
    is added to the mean square (root mean square norm: Zhang & Sennrich 2019, arXiv 1910.07467)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], modulation: None = None) -> Float[Array, "B T H W C"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.square(x32).sum(-1, keepdims=True))
        return (x32 / jnp.maximum(norm, LEAST_NORM) * (x.shape[-1] ** 0.5 * scale)).astype(x.dtype)


def causal_block(features: int, dtype: jnp.dtype, name: str) -> ResidualBlock:
    """Norm, SiLU and causal convolution, twice."""
    return ResidualBlock(features, (3, 3, 3), dtype=dtype, norms=PositionNorm, convolutions=CausalConvolution,
                         name=name)


class CausalMiddle(nn.Module):
    """Two blocks at the coarsest level, and attention within frames between them."""

    kernel: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        x = causal_block(x.shape[-1], self.dtype, "in")(x)
        x = Attention(heads=1, pattern=Spatial(), bias=True, out_init=zeros, norm=lambda: PositionNorm(name="norm"),
                      residual=True, kernel=self.kernel, dtype=self.dtype, name="frame_attention")(x)
        return causal_block(x.shape[-1], self.dtype, "out")(x)


class Downsample(nn.Module):
    """Half the rows and columns and, with `frames`, a frame of every two after the first, which stays alone."""

    frames: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C"]:
        x = Halve(self.dtype, name="space")(x)
        if not self.frames:
            return x
        first = begins(self)
        merged = CausalConvolution(x.shape[-1], (3, 1, 1), stride=2, before="nothing", dtype=self.dtype,
                                   name="time")(x)
        return jnp.concatenate([x[:, :1], merged], axis=1) if first else merged


class Upsample(nn.Module):
    """Two frames of every one after the first, which stays alone, with `frames`; then double rows and columns."""

    features: int
    frames: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 O"]:
        if self.frames:
            # What follows the first frame does not see it either.
            alone = x[:, : int(begins(self))]
            later = CausalConvolution(2 * x.shape[-1], (3, 1, 1), dtype=self.dtype, name="time")(x[:, alone.shape[1] :])
            x = jnp.concatenate([alone.astype(self.dtype), depth_to_time(later, 2)], axis=1)
        return CausalConvolution(self.features, (1, 3, 3), dtype=self.dtype, name="space")(nearest(x, (2, 2)))


def folded_means(x: Float[Array, "B T H W C"], frames: int, side: int, features: int) -> Float[Array, "B T2 H2 W2 O"]:
    """Blocks of frames, rows and columns in channels, then means of neighbouring ones: the shortcut of a level of the
    encoder. A clip that begins has zeros before it where its frames do not divide."""
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % frames, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "b (t p) (h q) (w r) c -> b t h w (c p q r)", p=frames, q=side, r=side)
    return x.reshape(*x.shape[:-1], features, -1).mean(-1)


def unfolded_copies(
    x: Float[Array, "B T H W C"], frames: int, side: int, features: int
) -> Float[Array, "B T2 H2 W2 O"]:
    """Copies of channels as blocks of frames, rows and columns: the shortcut of a level of the decoder."""
    x = jnp.repeat(x, features * frames * side**2 // x.shape[-1], axis=-1)
    return rearrange(x, "b t h w (c p q r) -> b (t p) (h q) (w r) c", p=frames, q=side, r=side)


def fold(video: Float[Array, "B T H W C"], side: int) -> Float[Array, "B T H2 W2 C2"]:
    """Patches of pixels in channels: colour by colour, in it column by column."""
    return rearrange(video, "b t (h p) (w q) c -> b t h w (c q p)", p=side, q=side)


def unfold(x: Float[Array, "B T H W C"], side: int) -> Float[Array, "B T H2 W2 C2"]:
    """Inverse of `fold`."""
    return rearrange(x, "b t h w (c q p) -> b t (h p) (w q) c", p=side, q=side)
