"""The block of a video transformer: self-attention, attention to text and a perceptron, modulated by noise levels."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.attention import AttentionPattern
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.networks.blocks.attention import Attention, ImageTokens, Tokens
from vdm_jax.networks.blocks.feed_forward import FeedForward
from vdm_jax.networks.layers import Dense, fan_in, silu, zeros
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.rules import shard_along

# Shift, scale and gate of the attention and of the perceptron, or in one of these of the video and of the text
BRANCHES = 6


@flax.struct.dataclass
class BlockInputs:
    """What all blocks see in addition to the tokens."""

    # Of the noise level of the clip or of each frame and, with conditioning frames in place, after them that of no
    # noise: `[B, F, C]`, or with a shared projection what it made of them, `[B, F, 6, C]`
    level: Float[Array, "B F *six C"]
    clean: Bool[Array, "B T H W"] | None = None  # tokens without noise, with conditioning frames in place
    text: Tokens | None = None  # outside tokens and their mask
    image: ImageTokens | None = None  # those with keys and values of their own
    frame_valid: Bool[Array, "B T"] | None = None
    numbers: Int[np.ndarray | Array, " T"] | None = None  # of the frames, where these are not their places
    there: Bool[Array, " F"] | None = None  # which frames of the past are there, where there is one


def selected(values: Float[Array, "B F C"], clean: Bool[Array, "B T H W"] | None) -> Float[Array, "B _ _ _ C"]:
    """Values of noise levels for the tokens, to broadcast against `[B, T, H, W, C]`; the last are those of tokens
    without noise, where there are such."""
    if clean is None:
        return values[:, :, None, None]
    noisy, without = values[:, :-1, None, None], values[:, -1:, None, None]
    return jnp.where(clean[..., None], without, noisy)


def plain_norm(x: Float[Array, "... C"], epsilon: float, centred: bool = True) -> Float[Array, "... C"]:
    """Layer norm, or RMS norm where it is not centred, without weights, in float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True) if centred else x
    return x * jnp.reciprocal(jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon))


def shifted(x: Float[Array, "... C"], shift: Array, scale: Array, dtype: jnp.dtype) -> Float[Array, "... C"]:
    """Scale and shift of what is normalised, in float32."""
    return (x * (1 + scale) + shift).astype(dtype)


def modulated(
    x: Float[Array, "B T H W C"], shift: Float[Array, "B _ _ _ C"], scale: Float[Array, "B _ _ _ C"], epsilon: float,
    dtype: jnp.dtype, centred: bool = True,
) -> Float[Array, "B T H W C"]:
    """`plain_norm`, scale and shift."""
    return shifted(plain_norm(x, epsilon, centred), shift, scale, dtype)


def gated(x: Float[Array, "... C"], gate: Float[Array, "... C"], y: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """`x + gate y`, summed in float32."""
    return (x.astype(jnp.float32) + gate * y.astype(jnp.float32)).astype(x.dtype)


class Modulation(nn.Module):
    """Shifts, scales and gates of a block, or shift and scale of the output: a projection of the noise level that
    starts at zero, or a table added to a shared projection."""

    config: VideoTransformer
    parts: int

    @nn.compact
    def __call__(self, level: Float[Array, "B F *six C"]) -> list[Float[Array, "B F O"]]:
        spec = self.config
        if spec.modulation == "block":
            found = Dense(self.parts * spec.width, kernel_init=zeros, name="modulation")(silu(level))
            found = found.reshape(*level.shape[:2], self.parts, spec.width)
        else:
            table = self.param("table", nn.initializers.normal(spec.width**-0.5), (1, self.parts, spec.width))
            found = table + (level if level.ndim == 4 else level[:, :, None])
        return [found[:, :, part] for part in range(self.parts)]


def projections(spec: VideoTransformer) -> dict[str, Any]:
    """Options that the attentions of a block have in common."""
    return {"head_dim": spec.head_dim, "joint": False, "bias": True, "kernel": spec.attention_kernel,
            "qk_norm": {"none": False, "heads": True}.get(spec.qk_norm, spec.qk_norm), "qk_epsilon": spec.qk_epsilon,
            "dtype": jnp.dtype(spec.dtype), "sharded_axis": spec.sharded_axis}


def positioned(spec: VideoTransformer, pattern: AttentionPattern) -> dict[str, Any]:
    """Options of a self-attention: positions and context."""
    return {"position": "none" if spec.rotary is None else "rotary", "rotary_axes": spec.rotary,
            "context": spec.context_of(pattern)}


class Block(nn.Module):
    """One block. Norms, modulation and gated sums are float32, products of `config.dtype`."""

    config: VideoTransformer
    pattern: AttentionPattern
    images: int = 0  # frames at the end that are independent

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], inputs: BlockInputs,
        past: tuple[Float[Array, "B F N K D"], Float[Array, "B F N K D"]] | None = None,
    ) -> Float[Array, "B T H W C"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        parts = Modulation(spec, BRANCHES, name="modulated")(inputs.level)
        shift, scale, gate, shift_2, scale_2, gate_2 = (selected(part, inputs.clean) for part in parts)
        frame_mask = independent_frames_mask(x.shape[1] - self.images, self.images) if self.images else None
        common, centred = projections(spec), spec.norm != "rms"
        attention = Attention(pattern=self.pattern, name="self_attention", **positioned(spec, self.pattern), **common)
        h = modulated(x, shift, scale, spec.epsilon, dtype, centred)
        past = None if past is None else (*past, inputs.there)
        x = gated(x, gate, attention(h, frame_mask, frame_valid=inputs.frame_valid, numbers=inputs.numbers, past=past))
        if spec.attends_outside:
            norm = partial(nn.LayerNorm, spec.epsilon, dtype=jnp.float32, name="norm") if spec.cross_norm else None
            # A block that starts as the identity has zeros here too, since no gate is before the sum.
            out_init = zeros if spec.modulation == "block" else fan_in
            cross = Attention(pattern=None, norm=norm, out_init=out_init, name="cross_attention", **common)
            x = x + cross(x, None, inputs.text, image=inputs.image)
        perceptron = FeedForward(spec.hidden, activation="gelu_new", dtype=dtype, name="feed_forward")
        x = gated(x, gate_2, perceptron(modulated(x, shift_2, scale_2, spec.epsilon, dtype, centred)))
        return shard_along(x, spec.sharded_axis)
