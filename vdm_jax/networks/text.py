"""Text inputs of a network: the word-level encoder trained with it, or embeddings computed beforehand."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.conditioning.conditioning import Conditioning
from vdm_jax.conditioning.vocabulary import FIRST_WORD
from vdm_jax.networks import config as cfg
from vdm_jax.networks.layers import Dense, silu


class WordEncoderNetwork(nn.Module):
    """Pre-norm transformer encoder over word ids."""

    config: cfg.WordEncoder
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l c"]:
        spec = self.config
        normal = nn.initializers.normal(1.0)
        table = self.param("words", normal, (len(spec.words) + FIRST_WORD, spec.width))
        places = self.param("places", nn.initializers.normal(0.5), (spec.length, spec.width))
        x = (table[tokens] + places).astype(self.dtype)
        for i in range(spec.layers):
            h = nn.LayerNorm(name=f"norm_{i}a")(x)
            qkv = Dense(3 * spec.width, use_bias=False, dtype=self.dtype, name=f"qkv_{i}")(h)
            q, k, v = (a.reshape(*x.shape[:2], -1, spec.head_dim) for a in jnp.split(qkv, 3, axis=-1))
            h = dense(q, Keys(k, v, mask[:, None, None, :])).reshape(x.shape)
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
        else:
            x = nn.LayerNorm(name="norm")(conditioning.embeddings)
        null = self.param("null", nn.initializers.normal(1.0), (1, x.shape[-1]))
        present = mask.any(-1)
        x = jnp.where(present[..., None, None], x, null.astype(x.dtype))
        mask = mask | ~present[..., None]
        weight = mask[..., None].astype(x.dtype)
        mean = (x * weight).sum(2) / weight.sum(2)
        pooled = Dense(self.pooled_channels, dtype=self.dtype, name="pool")(nn.LayerNorm(name="pool_norm")(mean))
        return x, mask, pooled
