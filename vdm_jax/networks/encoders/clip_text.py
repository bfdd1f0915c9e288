"""The text encoder of CLIP (Radford et al. 2021, arXiv 2103.00020): causal, with the end of the text as its summary.

Stable Diffusion 1.x is conditioned on the last hidden state of ViT-L/14's text encoder, 2.x and Stable Video
Diffusion's relatives on the penultimate one of OpenCLIP's ViT-H/14 (Rombach et al. 2022, arXiv 2112.10752, and the
released configs), both after the final norm.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.configuration import Count, Depth, Positive, Size, Width, WidthOrZero, config
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.feed_forward import Activation
from vdm_jax.networks.encoders.clip_layers import CLIPLayer, check_heads
from vdm_jax.networks.layers import Dense


@config
class CLIPText:
    """Sizes of a CLIP text encoder; the defaults are those of ViT-L/14."""

    vocabulary: Width = 49408  # tokens
    length: Count = 77  # tokens of a text at most
    width: Size = 768  # channels
    layers: Depth = 12
    heads: Size = 12
    hidden: Width = 3072  # channels inside the feed-forward layers
    activation: Activation = "quick_gelu"
    epsilon: Positive = 1e-5  # of the norms
    hidden_state: int = -1  # which one is returned: -1 the last layer's, -2 the penultimate one's, ...
    final_norm: bool = True  # whether the returned hidden state goes through the final norm
    project: WidthOrZero = 0  # channels of the projected summary; 0: no projection
    # Token that ends a text. 2 stands for "the largest id of the text", as the files of the first models say.
    end_token: int = 2
    dtype: str = "float32"  # of the activations

    def __post_init__(self):
        check_heads(self)
        if not -self.layers <= self.hidden_state <= -1:
            raise UserError(f"CLIPText.hidden_state={self.hidden_state}; permitted: {-self.layers} to -1")


CLIP_TEXT_L = CLIPText()  # ViT-L/14: Stable Diffusion 1.x
# OpenCLIP ViT-H/14 with all its layers; `CLIP_TEXT_H_23` is the form without the last one that the folders of Stable
# Diffusion 2.x hold.
CLIP_TEXT_H = CLIPText(width=1024, layers=24, heads=16, hidden=4096, activation="gelu", hidden_state=-2)
CLIP_TEXT_H_23 = dataclasses.replace(CLIP_TEXT_H, layers=23, hidden_state=-1)


class TextFeatures(NamedTuple):
    """What a text encoder gives."""

    tokens: Float[Array, "B L C"]  # for cross-attention
    pooled: Float[Array, "B C"]  # the summary: the last layer at the end of the text, projected where asked for


class CLIPTextEncoder(nn.Module):
    """Token ids `[B, L]` to features.

    Every token sees itself and those before it. Padding is seen too unless `mask` (True: a token of the text) hides it:
    the released models were trained, and are used, without a mask. Raises `UserError` for texts that are too long.
    """

    config: CLIPText

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None) -> TextFeatures:
        spec, length, dtype = self.config, tokens.shape[1], jnp.dtype(self.config.dtype)
        if length > spec.length:
            raise UserError(f"tokens of length {length} for CLIPText.length={spec.length}; permitted: up to it")
        table = self.param("words", nn.initializers.normal(0.02), (spec.vocabulary, spec.width))
        places = self.param("places", nn.initializers.normal(0.01), (spec.length, spec.width))
        x = (table[tokens] + places[:length]).astype(dtype)
        states = []
        for i in range(spec.layers):
            layer = CLIPLayer(spec.heads, spec.hidden, spec.activation, spec.epsilon, dtype, causal=True,
                              name=f"layer_{i}")
            x = layer(x, mask)
            states.append(x)
        norm = nn.LayerNorm(spec.epsilon, dtype=dtype, name="norm")
        last, chosen = norm(x), states[spec.hidden_state]
        pooled = jnp.take_along_axis(last, self._end(tokens)[:, None, None], axis=1)[:, 0]
        if spec.project:
            pooled = Dense(spec.project, use_bias=False, dtype=dtype, name="project")(pooled)
        return TextFeatures(norm(chosen) if spec.final_norm else chosen, pooled)

    def _end(self, tokens: Int[Array, "B L"]) -> Int[Array, " B"]:
        """Place of the first token that ends the text; 0 where none does."""
        ends = tokens if self.config.end_token == 2 else tokens == self.config.end_token
        return jnp.argmax(ends, axis=-1)
