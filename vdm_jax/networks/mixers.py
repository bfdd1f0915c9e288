"""Mixers: the residual layers by which tokens of a level of `UNet` exchange information, as configs of the blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.errors import unknown_kind
from vdm_jax.networks import config as cfg
from vdm_jax.networks.blocks.attention import Attention, Tokens
from vdm_jax.networks.blocks.feed_forward import FeedForward
from vdm_jax.networks.blocks.linear_attention import LinearAttention
from vdm_jax.networks.blocks.temporal import ConvolutionInflation, TemporalConvolutions
from vdm_jax.networks.layers import (
    Convolution,
    Dense,
    GroupNorm,
    Initializer,
    add_residual,
    fan_in,
    mean_pool,
    silu,
    zeros,
)
from vdm_jax.networks.resampling import every, existing
from vdm_jax.parallel.rules import shard_along


@flax.struct.dataclass
class MixerInputs:
    """What mixers may see in addition to the video."""

    extra_keys: dict[str, Tokens]  # tokens and their mask: text, references
    frame_valid: Bool[Array, "B T"] | None  # frames that exist; None: all
    # Conditioning frames (as features) and their mask at the size of each level, for `FrameInjection`
    frames: tuple[tuple[Array, Array], ...] = ()

    def every(self, stride: int) -> MixerInputs:
        """The same for a level that has one frame for `stride` of the clip."""
        if stride == 1:
            return self
        extra_keys = {name: (every(tokens, stride), every(mask, stride)) for name,
                      (tokens, mask) in self.extra_keys.items()}
        valid = self.frame_valid
        valid = None if valid is None else existing(valid, valid.shape[1] // stride)
        return MixerInputs(extra_keys, valid, self.frames)


class Mixers(nn.Module):
    """The mixers of a level, in order. Every one is a residual layer that starts as the identity."""

    config: cfg.UNet
    mixers: tuple[cfg.Mixer, ...]

    @nn.compact
    def __call__(self, x: Array, mixer_inputs: MixerInputs, images: int) -> Array:
        spec = self.config
        common = (spec.groups, spec.norm_over, jnp.dtype(spec.dtype), spec.sharded_axis)
        frame_mask = independent_frames_mask(x.shape[1] - images, images) if images else None
        for i, mixer in enumerate(self.mixers):
            build, prefix = LAYERS.get(type(mixer), (None, ""))
            if build is None:
                raise unknown_kind("a mixer", mixer, cfg.Mixer)
            layer = build(mixer, *common, name=f"{prefix or _prefix(mixer)}_{i}")
            if isinstance(mixer, cfg.SelfAttention):
                x = layer(x, frame_mask, mixer_inputs.extra_keys.get(mixer.extra_tokens), mixer_inputs.frame_valid)
            elif isinstance(mixer, cfg.CrossAttention):
                x = layer(x, None, mixer_inputs.extra_keys["text"])
            elif isinstance(mixer, cfg.FrameInjection):
                x = layer(x, mixer_inputs.frames)
            elif isinstance(mixer, cfg.AttentionInflation):
                x = layer(x, frame_mask, mixer_inputs.frame_valid)
            elif isinstance(mixer, cfg.LinearAttention):
                x = layer(x, frame_mask, None, mixer_inputs.frame_valid)
            else:
                x = layer(x) if isinstance(mixer, cfg.FeedForward) else layer(x, images, mixer_inputs.frame_valid)
        return x


def _prefix(mixer: cfg.SelfAttention) -> str:
    inner = getattr(mixer.pattern, "inner", mixer.pattern)
    return f"{type(inner).__name__.lower()}_attention"


def _norm(groups: int, norm_over: str) -> Callable[[], nn.Module]:
    return partial(GroupNorm, groups, norm_over, name="norm")


def self_attention(
    config: cfg.SelfAttention, groups: int, norm_over: str, dtype: jnp.dtype, sharded_axis: str = "frames",
    name: str | None = None, out_init: Initializer = zeros,
) -> Attention:
    """Self-attention with a pattern; an `WithExtraKeys` one sees text or reference tokens in addition, as Imagen
    appends text to its self-attention (Saharia et al. 2022, 2205.11487)."""
    return Attention(
        config.head_dim, pattern=config.pattern, position=config.position, qk_norm=config.qk_norm,
        kernel=config.kernel, context=config.context, norm=_norm(groups, norm_over), residual=True, out_init=out_init,
        dtype=dtype, sharded_axis=sharded_axis, name=name)


def cross_attention(
    config: cfg.CrossAttention, groups: int, norm_over: str, dtype: jnp.dtype, sharded_axis: str = "frames",
    name: str | None = None,
) -> Attention:
    """Attention of every video token to text tokens, which may differ per frame."""
    return Attention(config.head_dim, pattern=None, kernel=config.kernel, norm=_norm(groups, norm_over), residual=True,
                     out_init=zeros, dtype=dtype, sharded_axis=sharded_axis, name=name)


def linear_attention(
    config: cfg.LinearAttention, groups: int, norm_over: str, dtype: jnp.dtype, sharded_axis: str = "frames",
    name: str | None = None,
) -> LinearAttention:
    """Linear attention with a pattern of whole frames."""
    return LinearAttention(
        config.head_dim, pattern=config.pattern, position=config.position, qk_norm=config.qk_norm,
        norm=_norm(groups, norm_over), residual=True, out_init=zeros, dtype=dtype, sharded_axis=sharded_axis, name=name)


def temporal_convolution(
    config: cfg.TemporalConvolution, groups: int, norm_over: str, dtype: jnp.dtype, sharded_axis: str = "frames",
    name: str | None = None,
) -> TemporalConvolutions:
    """One temporal convolution."""
    return TemporalConvolutions(1, config.kernel, causal=config.causal, groups=groups, norm_over=norm_over, dtype=dtype,
                                sharded_axis=sharded_axis, name=name)


def feed_forward(
    config: cfg.FeedForward, groups: int, norm_over: str, dtype: jnp.dtype, sharded_axis: str = "frames",
    name: str | None = None,
) -> FeedForward:
    """A two-layer perceptron per token."""
    return FeedForward(expansion=config.expansion, in_name="in", norm=_norm(groups, norm_over), residual=True,
                       out_init=zeros, dtype=dtype, name=name)


def convolution_inflation(
    config: cfg.ConvolutionInflation, groups: int, norm_over: str, dtype: jnp.dtype, sharded_axis: str = "frames",
    name: str | None = None,
) -> ConvolutionInflation:
    """The convolution-based inflation block of Lumiere."""
    return ConvolutionInflation(config.kernel, config.temporal_kernel, groups, norm_over, dtype, sharded_axis,
                                name=name)


class AttentionInflationLayer(nn.Module):
    """Residual temporal attention layers one after the other, norm, zero-initialised projection (Lumiere: Bar-Tal et
    al. 2024, arXiv 2401.12945)."""

    config: cfg.AttentionInflation
    groups: int
    norm_over: str
    dtype: jnp.dtype
    sharded_axis: str = "frames"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], frame_mask: Bool[np.ndarray, "T T"] | None,
        frame_valid: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T H W C"]:
        common, h = (self.groups, self.norm_over, self.dtype, self.sharded_axis), x
        for i in range(self.config.layers):
            layer = self_attention(self.config.attention, *common, f"temporal_attention_{i}", fan_in)
            h = layer(h, frame_mask, None, frame_valid)
        h = GroupNorm(self.groups, self.norm_over, name="norm")(h)
        return add_residual(x, Dense(x.shape[-1], kernel_init=zeros, dtype=self.dtype, name="out")(h))


class FrameInjectionLayer(nn.Module):
    """`h := w h + b + h` with w and b from the conditioning frames, then from their mask."""

    config: cfg.FrameInjection
    groups: int
    norm_over: str
    dtype: jnp.dtype
    sharded_axis: str = "frames"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], frames: tuple[tuple[Array, Array], ...]
    ) -> Float[Array, "B T H W C"]:
        kernel = (1, self.config.kernel, self.config.kernel)
        here = next(parts for parts in frames if parts[0].shape[2:4] == x.shape[2:4])
        for name, part in zip(("frames", "mask"), here, strict=True):
            convolution = Convolution(2 * x.shape[-1], kernel, kernel_init=zeros, dtype=self.dtype,
                                      sharded_axis=self.sharded_axis, name=name)
            weight, bias = jnp.split(convolution(part), 2, axis=-1)
            x = add_residual(x, weight * x + bias)
        return x


class FramePyramid(nn.Module):
    """Conditioning frames and their mask at the size of every level: frames by a cascade of convolutions, of the
    levels' widths, each with the stride of its level, and the mask averaged over the pixels. Frames come as patches,
    the mask does not."""

    config: cfg.UNet

    @nn.compact
    def __call__(
        self, frames: Float[Array, "B T H W C"], mask: Float[Array, "B T H2 W2 1"]
    ) -> tuple[tuple[Array, Array], ...]:
        spec, found = self.config, []
        before = spec.resample_order == "before"
        mask = mean_pool(mask, (spec.patch, spec.patch))
        for i, level in enumerate(spec.levels):
            stride = level.stride if before else (1, 1) if i == 0 else spec.levels[i - 1].stride
            frames = Convolution(level.channels, strides=stride, dtype=jnp.dtype(spec.dtype),
                                 sharded_axis=spec.sharded_axis, name=f"level_{i}")(frames)
            frames, mask = shard_along(silu(frames), spec.sharded_axis), mean_pool(mask, stride)
            found.append((frames, mask))
        return tuple(found)


# Config of a mixer -> what builds its layer, and the layer's name ("": that of the pattern).
LAYERS: dict[type, tuple[Callable[..., Any], str]] = {
    cfg.SelfAttention: (self_attention, ""),
    cfg.CrossAttention: (cross_attention, "cross_attention"),
    cfg.LinearAttention: (linear_attention, "linear_attention"),
    cfg.TemporalConvolution: (temporal_convolution, "temporal_convolution"),
    cfg.FeedForward: (feed_forward, "feed_forward"),
    cfg.ConvolutionInflation: (convolution_inflation, "convolution_inflation"),
    cfg.AttentionInflation: (AttentionInflationLayer, "attention_inflation"),
    cfg.FrameInjection: (FrameInjectionLayer, "frame_injection"),
}
