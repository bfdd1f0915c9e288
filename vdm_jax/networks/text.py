"""Text inputs of a network: the word-level encoder trained with it, or embeddings computed beforehand."""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.attention import Temporal, attend
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.vocabulary import FIRST_WORD
from vdm_jax.errors import unknown_kind
from vdm_jax.networks import config as cfg
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.layers import Dense, PartedDense, silu


class WordEncoderNetwork(nn.Module):
    """Pre-norm transformer encoder over word ids."""

    config: cfg.WordEncoder
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L C"]:
        spec = self.config
        normal = nn.initializers.normal(1.0)
        table = self.param("words", normal, (len(spec.words) + FIRST_WORD, spec.width))
        places = self.param("places", nn.initializers.normal(0.5), (spec.length, spec.width))
        x = (table[tokens] + places).astype(self.dtype)
        heads = (spec.width // spec.head_dim, spec.head_dim)
        for i in range(spec.layers):
            h = nn.LayerNorm(name=f"norm_{i}a")(x)
            q, k, v = (a[:, :, None, None] for a in PartedDense(3, heads, use_bias=False, dtype=self.dtype,
                                                                name=f"qkv_{i}")(h))
            h = attend(q, k, v, pattern=Temporal(), frame_valid=mask).reshape(x.shape)
            x = x + Dense(spec.width, dtype=self.dtype, name=f"out_{i}")(h)
            h = nn.LayerNorm(name=f"norm_{i}b")(x)
            h = silu(Dense(4 * spec.width, dtype=self.dtype, name=f"expand_{i}")(h))
            x = x + Dense(spec.width, dtype=self.dtype, name=f"contract_{i}")(h)
        return nn.LayerNorm(name="norm")(x)


class TextConditioner(nn.Module):
    """Text tokens for cross-attention and a pooled vector, with a learned null caption where the mask is empty."""

    config: cfg.TextInput
    pooled_channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, conditioning: Conditioning) -> tuple[Array, Array, Array]:
        """Returns tokens `[B, G, L, C]`, their mask `[B, G, L]` and the pooled vector `[B, G, pooled_channels]`."""
        mask = conditioning.text_mask
        batch, groups, length = mask.shape
        if isinstance(self.config, cfg.WordEncoder):
            rows = (batch * groups, length)
            encoder = WordEncoderNetwork(self.config, self.dtype, name="encoder")
            x = encoder(conditioning.tokens.reshape(rows), mask.reshape(rows)).reshape(batch, groups, length, -1)
        elif not isinstance(self.config, cfg.EmbeddedText):
            raise unknown_kind("texts", self.config, (cfg.WordEncoder, cfg.EmbeddedText))
        else:
            x = nn.LayerNorm(name="norm")(conditioning.embeddings)
            if self.config.project:
                x = Dense(self.config.project, dtype=self.dtype, name="project")(x)
        null = self.param("null", nn.initializers.normal(1.0), (1, x.shape[-1]))
        present = mask.any(-1)
        x = jnp.where(present[..., None, None], x, null.astype(x.dtype))
        mask = mask | ~present[..., None]
        weight = mask[..., None].astype(x.dtype)
        mean = (x * weight).sum(2) / weight.sum(2)
        if self.config.pooling == "attention":
            pooled = attention_pooling(self.pooled_channels, self.dtype, "pool_attention")(mean, None, (x, mask))
        else:
            pooled = Dense(self.pooled_channels, dtype=self.dtype, name="pool")(nn.LayerNorm(name="pool_norm")(mean))
        return x, mask, pooled


def attention_pooling(features: int, dtype: jnp.dtype, name: str) -> Attention:
    """One vector of many tokens, as what their mean attends to, in heads of 64 channels at most.

    Imagen pools its text by attention, with layer norm on the embeddings (Saharia et al. 2022, arXiv
    2205.11487); where the query comes from and the width are not published.
    """
    head_dim = math.gcd(features, 64)
    return Attention(head_dim, features // head_dim, pattern=None, features=features,
                     norm=partial(nn.LayerNorm, name="norm"), norm_outside=True, dtype=dtype, name=name)
