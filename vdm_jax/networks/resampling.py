"""Changes of resolution between the levels of the U-Net: of space, and of time where a level asks for it.

A network that also shrinks clips in time (Lumiere: Bar-Tal et al. 2024, arXiv 2401.12945) has a temporal
resampler after each spatial one, which keeps its name: the weights of an image network stay where they are. Both
temporal convolutions start as the identity, so that a fresh one takes every k-th frame and repeats it: every N-th frame
(N: `UNet.frame_reduction`) then comes out as the image network makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.networks import config as cfg
from vdm_jax.networks.layers import Convolution, identity, mean_pool, nearest

Run = Callable[..., Array]  # a block of that name: (x, level, mixers, name, change of resolution or nothing)


def convolution_options(spec: cfg.UNet) -> dict[str, Any]:
    """Of the convolutions inside the network."""
    return {"dtype": jnp.dtype(spec.dtype), "sharded_axis": spec.sharded_axis, "temporal": spec.temporal_kernel,
            "causal": spec.temporal_causal}


class Downsample(nn.Module):
    """Spatial reduction by `stride`: strided convolution to `channels`, or mean pool, which keeps them."""

    config: cfg.UNet
    stride: tuple[int, int]
    channels: int

    @nn.compact
    def __call__(self, x: Array, images: int = 0, frame_valid: Bool[Array, "B T"] | None = None) -> Array:
        if self.config.resample == "pool":
            return mean_pool(x, self.stride)
        convolution = Convolution(self.channels, strides=self.stride, name="conv", **convolution_options(self.config))
        return convolution(x, images, frame_valid)


class Upsample(nn.Module):
    """Spatial growth by `stride`: nearest neighbour, with a convolution to `channels` after it unless pooling was
    chosen."""

    config: cfg.UNet
    stride: tuple[int, int]
    channels: int

    @nn.compact
    def __call__(self, x: Array, images: int = 0, frame_valid: Bool[Array, "B T"] | None = None) -> Array:
        x = nearest(x, self.stride)
        if self.config.resample == "pool":
            return x
        convolution = Convolution(self.channels, name="conv", **convolution_options(self.config))
        return convolution(x, images, frame_valid)


class TemporalDownsample(nn.Module):
    """Temporal convolution, which starts as the identity, then every `stride`-th frame."""

    config: cfg.UNet
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], frame_valid: Bool[Array, "B T"] | None
    ) -> Float[Array, "B T2 H W C"]:
        x = convolve_existing(self.config, x, frame_valid)
        return x.reshape(x.shape[0], -1, self.stride, *x.shape[2:])[:, :, 0]


class TemporalUpsample(nn.Module):
    """Each frame `stride` times, then a temporal convolution, which starts as the identity."""

    config: cfg.UNet
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], frame_valid: Bool[Array, "B T2"] | None
    ) -> Float[Array, "B T2 H W C"]:
        return convolve_existing(self.config, jnp.repeat(x, self.stride, axis=1), frame_valid)


def convolve_existing(spec: cfg.UNet, x: Float[Array, "B T H W C"], frame_valid: Bool[Array, "B T"] | None) -> Array:
    """Convolution `conv` over frames that starts as the identity; a frame that does not exist counts as the padding
    beyond the clip."""
    if frame_valid is not None:
        x = jnp.where(frame_valid[:, :, None, None, None], x, 0)
    options = {**convolution_options(spec), "temporal": 1}
    kernel = (spec.temporal_stride_kernel, 1, 1)
    return Convolution(x.shape[-1], kernel, kernel_init=identity(spec.temporal_causal), name="conv", **options)(x)


def downsampled(
    spec: cfg.UNet, run: Run, i: int, channels: int, x: Array, images: int, frame_valid: Bool[Array, "B T"] | None
) -> Array:
    """`x` by the strides of level `i`, of space and then of time; to be called inside the network. `frame_valid` is
    that of the whole clip, and there are no appended images with strides of time."""
    level, name = spec.levels[i], f"downsample_{i}"
    if spec.resample == "biggan":
        x = run(x, level, (), name, partial(mean_pool, stride=level.stride))
    else:
        x = Downsample(spec, level.stride, channels, name=name)(x, images, existing(frame_valid, x.shape[1]))
    if level.temporal_stride > 1:
        valid = existing(frame_valid, x.shape[1])
        x = TemporalDownsample(spec, level.temporal_stride, name=f"temporal_downsample_{i}")(x, valid)
    return x


def upsampled(
    spec: cfg.UNet, run: Run, i: int, level: cfg.Level, channels: int, x: Array, images: int,
    frame_valid: Bool[Array, "B T"] | None,
) -> Array:
    """The way back of `reduced`: `x` of level `i` by the strides of `level`, under the names of `i`."""
    name = f"upsample_{i}"
    if spec.resample == "biggan":
        x = run(x, spec.levels[i], (), name, partial(nearest, stride=level.stride))
    else:
        x = Upsample(spec, level.stride, channels, name=name)(x, images, existing(frame_valid, x.shape[1]))
    if level.temporal_stride > 1:
        valid = existing(frame_valid, x.shape[1] * level.temporal_stride)
        x = TemporalUpsample(spec, level.temporal_stride, name=f"temporal_upsample_{i}")(x, valid)
    return x


def existing(frame_valid: Bool[Array, "B T"] | None, frames: int) -> Bool[Array, "B T2"] | None:
    """Which frames of a level exist: one does if any frame of the clip that it stands for does."""
    return None if frame_valid is None else frame_valid.reshape(len(frame_valid), frames, -1).any(-1)


def every(a: Array | None, stride: int) -> Array | None:
    """What belongs to every `stride`-th frame, of an array with a group per frame or one for all `[B, T or 1, ...]`."""
    return a if a is None or a.shape[1] == 1 else a[:, ::stride]
