"""Attention that a pattern masks after its softmax: what is hidden still takes its share, and rows sum to less than 1.

The directed attention of MagicVideo (Zhou et al. 2022, arXiv 2211.11018) is `softmax(Q K^T / sqrt(d)) . M`, with M of
zeros and ones and an elementwise product; every other attention of this room hides before the softmax.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.attention import counting
from vdm_jax.attention.patterns import Pattern, Temporal
from vdm_jax.errors import UserError


def attend_masked_after(
    q: Float[Array, "B T H W K D"], k: Float[Array, "B T H W K D"], v: Float[Array, "B T H W K D"], *,
    pattern: Pattern, kernel: str = "auto", context: str = "none", sharded_axis: str = "frames", **given: Any,
) -> Float[Array, "B T H W K D"]:
    """Dense attention over all frames of each position, of whose weights those that `pattern` hides are left out.

    Raises `UserError` for a pattern of another layout, another kernel or context, and for anything else that is given
    to `attend`.
    """
    check_masked_after(pattern, kernel, context)
    for name, value in given.items():
        if value is not None:
            raise UserError(f"attend_masked_after: {name} is given; permitted: queries, keys and values alone")
    if (calls := counting.calls()) is not None:
        calls.append(counting.AttentionCall(Temporal(), q.shape[1:4], q.shape[0], q.shape[4], q.shape[5], "xla",
                                            context, True, 0, None))
        return jnp.zeros_like(v)
    logits = jnp.einsum("bthwkd,bshwkd->bhwkts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    weights = jnp.where(pattern.frame_table(q.shape[1]), jax.nn.softmax(logits, axis=-1), 0)
    return jnp.einsum("bhwkts,bshwkd->bthwkd", weights.astype(v.dtype), v)


def check_masked_after(pattern: Pattern, kernel: str, context: str) -> None:
    """Raise `UserError` for what attention that is masked after its softmax cannot be."""
    if pattern.layout != "positions" or kernel not in ("auto", "xla") or context != "none":
        raise UserError(f"attention masked after the softmax with pattern {pattern}, kernel={kernel!r}, "
                        f"context={context!r}; permitted: Temporal or TemporalCausal, 'auto' or 'xla', 'none'")
