"""The one entry to attention: pattern, kernel and context in, attended tokens out."""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.capability import require
from vdm_jax.attention.kernels import KERNELS
from vdm_jax.attention.patterns import AttentionPattern

# Layout of the tokens [B, T, N, K, D] in which a pattern is computed: einops pattern, and its inverse.
LAYOUTS = {
    "frames": "b t n k d -> (b t) n k d",
    "positions": "b t n k d -> (b n) t k d",
    "all": "b t n k d -> b (t n) k d",
}


def attend(
    q: Float[Array, "b t n k d"],
    k: Float[Array, "b t n k d"],
    v: Float[Array, "b t n k d"],
    *,
    pattern: AttentionPattern,
    kernel: str = "xla",
    context: str = "none",
    bias: Float[Array, "k q s"] | None = None,
    frame_mask: Bool[Array, "t t"] | None = None,
) -> Float[Array, "b t n k d"]:
    """Self-attention among the tokens of a video.

    Args:
      q, k, v: queries, keys and values per token; q and k already carry their positions.
      pattern: who sees whom.
      kernel, context: how and where; checked against the capability table (`UserError` otherwise).
      bias: added to the logits, `[K, queries, keys]` in the pattern's own layout.
      frame_mask: which frame may see which, on top of the pattern (appended independent images).
    """
    require(pattern, kernel, context)
    _, frames, tokens, _, _ = q.shape
    layout = LAYOUTS[pattern.layout]
    mask = None
    if frame_mask is not None and pattern.layout != "frames":  # inside one frame there is nothing to mask
        mask = jnp.asarray(frame_mask)
        if pattern.layout == "all":
            mask = jnp.repeat(jnp.repeat(mask, tokens, axis=0), tokens, axis=1)
    q, k, v = (rearrange(x, layout) for x in (q, k, v))
    out = KERNELS[kernel](q, k, v, bias=bias, mask=mask)
    inverse = " -> ".join(reversed(layout.split(" -> ")))
    return rearrange(out, inverse, t=frames, n=tokens)
