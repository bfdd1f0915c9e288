"""Layers over frames that follow those within frames, in open latent video models: a stack of convolutions and a
transformer.

ModelScope (Wang et al. 2023, arXiv 2308.06571) has both, AnimateDiff (Guo et al. 2023, arXiv 2307.04725) has the
transformer alone, with a code of the frame's number, as a motion module that joins any image network of its sizes.
Both end in a projection that starts at zero: a network then begins as its image network, frame by frame.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import Temporal
from vdm_jax.configuration import Count, ShareBelowOne, Size, config
from vdm_jax.errors import UserError
from vdm_jax.networks.latent_unet_blocks import TOKEN_EPSILON, GatedFeedForward, Sizes, TokenAttention, beside
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, fan_in, silu, zeros


@config
class Stack:
    """ModelScope: four convolutions over frames after each residual block, two self-attentions over frames after each
    transformer, and such a transformer after the first convolution."""

    first_heads: Size = 8  # of the transformer after the first convolution, as large as the first level's
    dropout: ShareBelowOne = 0.1  # probability, in training, before all but the first of the convolutions

    def __post_init__(self):
        if self.first_heads < 1 or not 0 <= self.dropout < 1:
            raise UserError(f"Stack: first_heads={self.first_heads}, dropout={self.dropout}; permitted: positive, 0 <= "
                            "dropout < 1")


@config
class Motion:
    """AnimateDiff: a motion module after each block of every level, whether it has a transformer or not."""

    heads: Size = 8
    frames: Size = 32  # of the longest clip; 24 in the first version
    middle: bool = True  # one in the middle too, in the second version only
    groups: Count = 32  # of its norms

    def __post_init__(self):
        if min(self.heads, self.frames, self.groups) < 1:
            raise UserError(f"Motion: heads={self.heads}, frames={self.frames}, groups={self.groups}; permitted: "
                            "positive")


MOTION_V1 = Motion(frames=24, middle=False)
MOTION_V2 = Motion()
MOTION_V3 = Motion(middle=False)


def frame_code(frames: int, channels: int) -> Float[np.ndarray, "T C"]:
    """Sines (even channels) and cosines (odd ones) of the number of each frame."""
    angle = np.arange(frames)[:, None] * np.exp(np.arange(0, channels, 2) * (-math.log(10_000) / channels))
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(frames, -1)[:, :channels].astype(np.float32)


class FrameConvolutions(nn.Module):
    """Norm over the clip, SiLU and convolution over three frames, four times, beside a residual connection."""

    sizes: Sizes
    dropout: ShareBelowOne = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], images: Bool[Array, "B T"] | None = None, train: bool = False
    ) -> Float[Array, "B T H W C"]:
        h = x
        for i in range(4):
            h = silu(GroupNorm(self.sizes.groups, "clip", 1e-5, name=f"norm_{i}")(h))
            h = nn.Dropout(self.dropout, deterministic=not train)(h) if i else h
            h = Convolution(x.shape[-1], (3, 1, 1), kernel_init=zeros if i == 3 else fan_in, dtype=self.sizes.dtype,
                            name=f"conv_{i}")(h)
        return beside(x, h, images)


class FrameTransformer(nn.Module):
    """Norm over the clip, affine map, two self-attentions over frames, feed-forward, affine map, beside a residual
    connection. With `code`, each attention's input has the code of the frame's number added."""

    heads: Size
    head_dim: Size
    groups: Count
    sizes: Sizes
    code: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], images: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T H W C"]:
        dtype, inner = self.sizes.dtype, self.heads * self.head_dim

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(1e-5, dtype=dtype, name=f"norm_{name}")

        h = GroupNorm(self.groups, "clip", TOKEN_EPSILON, name="norm")(x)
        h = Dense(inner, dtype=dtype, name="in")(h)
        for i in range(2):
            seen = norm(f"attention_{i}")(h)
            if self.code:
                seen = seen + jnp.asarray(frame_code(x.shape[1], inner), dtype)[:, None, None]
            h = h + TokenAttention(self.heads, self.sizes, Temporal(), name=f"self_attention_{i}")(seen)
        h = h + GatedFeedForward(dtype, name="feed_forward")(norm("feed_forward")(h))
        return beside(x, Dense(x.shape[-1], kernel_init=zeros, dtype=dtype, name="out")(h), images)


def motion_module(motion: Motion, sizes: Sizes, channels: int, name: str) -> FrameTransformer:
    """The motion module of a level with this many channels."""
    return FrameTransformer(motion.heads, channels // motion.heads, motion.groups, sizes, code=True, name=name)
