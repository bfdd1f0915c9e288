"""Blocks whose sequence is the video and its text: through the same layers (CogVideoX: Yang et al. 2024, arXiv
2408.06072), through layers of their own, then through the same ones (HunyuanVideo: Kong et al. 2024, arXiv 2412.03603).
And the layers that prepare such a text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import AttentionPattern, WithExtraKeys
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.feed_forward import ACTIVATIONS, FeedForward
from vdm_jax.networks.blocks.sinusoids import sinusoids
from vdm_jax.networks.layers import Dense, silu
from vdm_jax.networks.transformer.blocks import (
    BRANCHES,
    BlockInputs,
    Modulation,
    gated,
    plain_norm,
    positioned,
    projections,
    shifted,
)
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.rules import shard_along

SMALL = nn.initializers.normal(0.02)  # of the perceptrons of noise level and text, as DiT and Wan begin


def norm_of(spec: VideoTransformer, name: str) -> Callable[[Array], Array]:
    """The norm before a modulation, in float32; a layer where it has weights."""
    if spec.norm == "affine":
        return nn.LayerNorm(spec.epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)
    return partial(plain_norm, epsilon=spec.epsilon)


class JointBlock(nn.Module):
    """One block of attention and perceptron. Video and text have shifts, scales and gates of their own."""

    config: VideoTransformer
    pattern: AttentionPattern

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], text: Float[Array, "B 1 L C"], inputs: BlockInputs
    ) -> tuple[Float[Array, "B T H W C"], Float[Array, "B 1 L C"]]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        same, modulations = spec.text_stream == "joint", self._modulations(inputs.level)
        attention = Attention(pattern=WithExtraKeys(inner=self.pattern), two_way="shared" if same else "own",
                              name="self_attention", **positioned(spec, self.pattern), **projections(spec))
        perceptron = FeedForward(spec.hidden, activation="gelu_new", dtype=dtype, name="feed_forward")
        of_text = perceptron if same else FeedForward(spec.hidden, activation="gelu_new", dtype=dtype,
                                                      name="text_feed_forward")
        for name, (of_video, own) in modulations.items():
            shift, scale, gate = (part[:, :, None, None] for part in of_video)
            text_shift, text_scale, text_gate = (part[:, :, None] for part in own)
            norm = norm_of(spec, f"{name}_norm")
            h, h_text = shifted(norm(x), shift, scale, dtype), shifted(norm(text), text_shift, text_scale, dtype)
            if name == "attention":
                found, found_text = attention(h, None, (h_text, inputs.text[1]), frame_valid=inputs.frame_valid)
            else:
                found, found_text = perceptron(h), of_text(h_text)
            x, text = gated(x, gate, found), gated(text, text_gate, found_text)
        return shard_along(x, spec.sharded_axis), text

    def _modulations(self, level: Float[Array, "B F C"]) -> dict[str, tuple[list[Array], list[Array]]]:
        """By branch: shift, scale and gate of the video, and of the text. A projection of each branch makes those of
        both, or one of the video and one of the text those of both branches."""
        spec, names = self.config, ("attention", "feed_forward")
        if spec.text_stream == "joint":
            found = {name: Modulation(spec, BRANCHES, name=f"{name}_modulated")(level) for name in names}
            return {name: (parts[:3], parts[3:]) for name, parts in found.items()}
        video, text = (Modulation(spec, BRANCHES, name=name)(level) for name in ("modulated", "text_modulated"))
        return {"attention": (video[:3], text[:3]), "feed_forward": (video[3:], text[3:])}


class SingleBlock(nn.Module):
    """One block of video and text alike, whose attention and perceptron stand next to each other and end in one map."""

    config: VideoTransformer
    pattern: AttentionPattern

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], text: Float[Array, "B 1 L C"], inputs: BlockInputs
    ) -> tuple[Float[Array, "B T H W C"], Float[Array, "B 1 L C"]]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        parts = Modulation(spec, 3, name="modulated")(inputs.level)
        norm = norm_of(spec, "norm")
        both = [(x, [part[:, :, None, None] for part in parts]), (text, [part[:, :, None] for part in parts])]
        h, h_text = (shifted(norm(tokens), shift, scale, dtype) for tokens, (shift, scale, _) in both)
        attention = Attention(pattern=WithExtraKeys(inner=self.pattern), two_way="shared", project=False,
                              name="self_attention", **positioned(spec, self.pattern), **projections(spec))
        found = attention(h, None, (h_text, inputs.text[1]), frame_valid=inputs.frame_valid)
        expand, out = Dense(spec.hidden, dtype=dtype, name="expand"), Dense(spec.width, dtype=dtype, name="out")
        x, text = (gated(tokens, gate, out(jnp.concatenate([seen, ACTIVATIONS["gelu_new"](expand(inside))], axis=-1)))
                   for (tokens, (_, _, gate)), seen, inside in zip(both, found, (h, h_text), strict=True))
        return shard_along(x, spec.sharded_axis), text


class RefinerBlock(nn.Module):
    """One block of self-attention among text tokens and a perceptron, each with a gate."""

    config: VideoTransformer

    @nn.compact
    def __call__(
        self, x: Float[Array, "B 1 L C"], vector: Float[Array, "B 1 C"], mask: Bool[Array, "B 1 L"]
    ) -> Float[Array, "B 1 L C"]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        gate, gate_2 = jnp.split(Dense(2 * spec.width, name="gates")(silu(vector))[:, :, None], 2, axis=-1)
        norms = (nn.LayerNorm(spec.epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)
                 for name in ("norm_attention", "norm_feed_forward"))
        attention = Attention(pattern=None, head_dim=spec.head_dim, joint=False, bias=True, dtype=dtype,
                              kernel=spec.attention_kernel, name="attention")
        h = next(norms)(x)
        x = gated(x, gate, attention(h[:, 0], outside=(h, mask))[:, None])
        perceptron = FeedForward(4 * spec.width, activation="silu", dtype=dtype, name="feed_forward")
        return gated(x, gate_2, perceptron(next(norms)(x)))


class TextRefiner(nn.Module):
    """Text tokens in the width of the blocks, after some blocks of their own that see the noise level and the mean of
    the text. The first token is seen whether it is hidden or not."""

    config: VideoTransformer

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B 1 L E"], mask: Bool[Array, "B 1 L"], number: Float[Array, "B 1"]
    ) -> Float[Array, "B 1 L C"]:
        spec = self.config
        code = sinusoids(number, spec.level_channels, order="cos_sin", endpoint=False)
        seen = mask[..., None].astype(jnp.float32)
        mean = (tokens * seen).sum(2) / jnp.maximum(seen.sum(2), 1)
        vector = perceptron(spec.width, "level", code) + perceptron(spec.width, "pooled", mean)
        x = Dense(spec.width, kernel_init=SMALL, dtype=jnp.dtype(spec.dtype), name="text_in")(tokens)
        mask = jnp.asarray(mask).at[:, :, 0].set(True)
        for place in range(spec.text_refiner):
            x = RefinerBlock(spec, name=f"refiner_{place}")(x, vector, mask)
        return x


def perceptron(width: int, name: str, x: Float[Array, "... C"]) -> Float[Array, "... O"]:
    """Two layers of the module that calls it, `NAME_in` and `NAME_out`."""
    return Dense(width, kernel_init=SMALL, name=f"{name}_out")(silu(
        Dense(width, kernel_init=SMALL, name=f"{name}_in")(x)))
