"""The decoder of Llama 3 as a text encoder (Dubey et al. 2024, arXiv 2407.21783), as HunyuanVideo reads it.

Causal attention whose groups of heads share keys and values (Ainslie et al. 2023, arXiv 2305.13245), rotary positions
(Su et al. 2021, 2104.09864) of which the halves of a head are pairs, root-mean-square norms, and a gated feed-forward
layer (Shazeer 2020, 2002.05202). No biases.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.configuration import Count, Depth, Positive, Size, SizeOrZero, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.feed_forward import FeedForward
from vdm_jax.networks.encoders.t5 import RMSNorm
from vdm_jax.networks.layers import Dense


@config
class LlamaText:
    """Sizes of a Llama; the defaults are those of Llama 3 8B with the tokens of LLaVA, HunyuanVideo's."""

    vocabulary: Width = 128320  # tokens
    width: Size = 4096  # channels
    layers: Depth = 32
    heads: Size = 32
    key_heads: Count = 8  # heads of keys and values, which groups of the others share
    head_dim: Size = 128  # channels of a head
    hidden: Width = 14336  # channels inside the feed-forward layers
    base: Positive = 500_000.0  # of the rotary positions (theta)
    epsilon: Positive = 1e-5  # of the norms
    skipped: SizeOrZero = 2  # last layers whose output is not waited for, and no norm then; 0: all layers and the norm
    dtype: str = "float32"  # of the projections; norms and the residual stream are float32

    def __post_init__(self):
        if self.heads % self.key_heads or self.head_dim % 2:
            raise UserError(f"LlamaText.heads={self.heads} with key_heads={self.key_heads}, head_dim={self.head_dim}; "
                            "permitted: a multiple of the heads of keys, of even size")
        if self.skipped >= self.layers:
            raise UserError(f"LlamaText.skipped={self.skipped} of layers={self.layers}; permitted: fewer than these")


LLAMA_8B = LlamaText()


def turned(x: Float[Array, "B L K D"], base: float) -> Float[Array, "B L K D"]:
    """Each channel of the first half of a head turned with that of the second half, by the place; float32."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angle), jnp.float32)[:, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class GroupedAttention(nn.Module):
    """Attention of each token to itself and those before it, of the tokens that `mask` shows."""

    config: LlamaText

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Bool[Array, "B L"]) -> Float[Array, "B L C"]:
        spec, dtype, groups = self.config, jnp.dtype(self.config.dtype), self.config.heads // self.config.key_heads
        q, k, v = (Dense(heads * spec.head_dim, use_bias=False, dtype=dtype, name=name)(x).reshape(
            *x.shape[:2], heads, spec.head_dim) for name, heads in (
                ("query", spec.heads), ("key", spec.key_heads), ("value", spec.key_heads)))
        q, k = (turned(part, spec.base).astype(dtype) for part in (q, k))
        q = q.reshape(*x.shape[:2], spec.key_heads, groups, spec.head_dim)
        logits = jnp.einsum("bqkgd,bskd->bkgqs", q, k, preferred_element_type=jnp.float32) * spec.head_dim**-0.5
        places = jnp.arange(x.shape[1])
        seen = (places[None] <= places[:, None]) & mask[:, None]
        # Padding in front of all tokens would see nothing; what it finds is not used.
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], logits, jnp.finfo(jnp.float32).min), axis=-1)
        found = jnp.einsum("bkgqs,bskd->bqkgd", weights.astype(dtype), v)
        return Dense(x.shape[-1], use_bias=False, dtype=dtype, name="out")(found.reshape(*x.shape[:2], -1))


class LlamaTextEncoder(nn.Module):
    """Token ids `[B, L]` and their mask (True: a token of the text, None: all) to hidden states `[B, L, C]`, float32.

    Padding is not seen; what is returned in its places has no meaning.
    """

    config: LlamaText

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None) -> Float[Array, "B L C"]:
        spec, dtype, states = self.config, jnp.dtype(self.config.dtype), []
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        table = self.param("words", nn.initializers.normal(0.02), (spec.vocabulary, spec.width))
        x = table[tokens].astype(jnp.float32)
        for i in range(spec.layers):
            h = RMSNorm(spec.epsilon, name=f"layer_{i}_norm_attention")(x)
            x = x + GroupedAttention(spec, name=f"layer_{i}_self_attention")(h, mask)
            h = RMSNorm(spec.epsilon, name=f"layer_{i}_norm_feed_forward")(x)
            x = x + FeedForward(spec.hidden, gate="separate", use_bias=False, dtype=dtype,
                                name=f"layer_{i}_feed_forward")(h)
            states.append(x)
        last = RMSNorm(spec.epsilon, name="norm")(x)
        return states[-1 - spec.skipped] if spec.skipped else last
