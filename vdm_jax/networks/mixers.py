"""Mixers: the residual layers by which tokens of a level exchange information."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import attend
from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.attention.positions import relative_index, rotary
from vdm_jax.networks import config as cfg
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, add_residual, fan_in, silu, zeros

# Axes that one sequence of a layout spans.
LAYOUT_AXES = {"frames": "hw", "positions": "t", "all": "thw"}


class SelfAttentionLayer(nn.Module):
    """Pre-norm self-attention with a pattern; the zero output projection makes it start as the identity."""

    config: cfg.SelfAttention
    groups: int
    norm_over: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], frame_mask: Bool[np.ndarray, "t t"] | None) -> Array:
        spec, (batch, frames, height, width, channels) = self.config, x.shape
        heads = channels // spec.head_dim
        h = GroupNorm(self.groups, self.norm_over, name="norm")(x)
        qkv = Dense(3 * channels, use_bias=False, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(batch, frames, height, width, 3 * heads, spec.head_dim), 3, axis=-2)
        bias = None
        if spec.position == "rotary":
            axes = LAYOUT_AXES[spec.pattern.layout]
            q, k = rotary(q, axes=axes), rotary(k, axes=axes)
        elif spec.position == "relative":
            bias = RelativeBias(heads, name="position")(spec.pattern, (frames, height, width))
        out = attend(q, k, v, pattern=spec.pattern, kernel=spec.kernel, context=spec.context, bias=bias,
                     frame_mask=frame_mask)
        return add_residual(x, Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(out.reshape(x.shape)))


class RelativeBias(nn.Module):
    """Learned bias per head and clipped offset, summed over the axes a pattern spans (Shaw et al. 2018, 1803.02155,
    in the scalar form of Raffel et al. 2020, 1910.10683)."""

    heads: int
    max_distance: int = 16  # positions; further offsets share one entry

    @nn.compact
    def __call__(self, pattern: object, lengths: tuple[int, int, int]) -> Float[Array, "k q s"]:
        axes = LAYOUT_AXES[pattern.layout]
        sizes = [lengths["thw".index(a)] for a in axes]
        total = jnp.zeros((self.heads, *sizes, *sizes))
        for place, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
            table = self.param(f"table_{axis}", zeros, (2 * self.max_distance + 1, self.heads))
            bias = table[relative_index(size, self.max_distance)]  # [size, size, heads]
            shape = [1] * (1 + 2 * len(axes))
            shape[0], shape[1 + place], shape[1 + place + len(axes)] = self.heads, size, size
            total = total + jnp.moveaxis(bias, -1, 0).reshape(shape)
        count = int(np.prod(sizes))
        return total.reshape(self.heads, count, count)


class CrossAttentionLayer(nn.Module):
    """Attention of every video token to text tokens, which may differ per frame."""

    config: cfg.CrossAttention
    groups: int
    norm_over: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], text: Float[Array, "b g l e"], mask: Bool[Array, "b g l"],
    ) -> Array:
        batch, frames, height, width, channels = x.shape
        sets = text.shape[1]  # 1: one caption per clip; T: one per frame
        shape = (-1, channels // self.config.head_dim, self.config.head_dim)
        h = GroupNorm(self.groups, self.norm_over, name="norm")(x)
        q = Dense(channels, use_bias=False, dtype=self.dtype, name="query")(h)
        kv = Dense(2 * channels, use_bias=False, dtype=self.dtype, name="key_value")(text)
        q = q.reshape(batch, sets, *shape)  # [B, sets, tokens, K, D]
        k, v = (a.reshape(batch, sets, *shape) for a in jnp.split(kv, 2, axis=-1))
        out = dense(q, Keys(k, v, mask[:, :, None, None, :]))
        return add_residual(x, Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(out.reshape(x.shape)))


class TemporalConvolutionLayer(nn.Module):
    """Norm, SiLU and a zero-initialised convolution over frames; appended independent images pass it by."""

    config: cfg.TemporalConvolution
    groups: int
    norm_over: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], images: int) -> Array:
        h = silu(GroupNorm(self.groups, self.norm_over, name="norm")(x))
        clip = h[:, : x.shape[1] - images]
        h = Convolution(x.shape[-1], (self.config.kernel, 1, 1), kernel_init=zeros, dtype=self.dtype, name="conv")(clip)
        return add_residual(x, jnp.pad(h, ((0, 0), (0, images), (0, 0), (0, 0), (0, 0))) if images else h)


class FeedForwardLayer(nn.Module):
    """Norm, expansion, SiLU, zero-initialised projection back."""

    config: cfg.FeedForward
    groups: int
    norm_over: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Array:
        channels = x.shape[-1]
        h = GroupNorm(self.groups, self.norm_over, name="norm")(x)
        h = silu(Dense(self.config.expansion * channels, kernel_init=fan_in, dtype=self.dtype, name="in")(h))
        return add_residual(x, Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(h))
