"""Attention kernels: how softmax(q k^T) v is computed once the layout is chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # finite, so that a fully masked row gives a uniform average instead of NaN


def xla(
    q: Float[Array, "*b q k d"],
    k: Float[Array, "*b s k d"],
    v: Float[Array, "*b s k d"],
    *,
    bias: Float[Array, ...] | None = None,
    mask: Bool[Array, ...] | None = None,
) -> Float[Array, "*b q k d"]:
    """Dense attention, the reference for every other kernel.

    `bias` and `mask` broadcast against the logits `[*b, heads, queries, keys]`; logits and softmax are float32.
    """
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum("...qkd,...skd->...kqs", q * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("...kqs,...skd->...qkd", weights, v)


KERNELS = {"xla": xla}
