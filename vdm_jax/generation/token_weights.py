"""Factors on the attention to tokens of captions, of the clip or of each frame (`Conditioning.token_weights`).

As in Prompt-to-Prompt (`editing/prompt_to_prompt.py`) the values of the tokens are scaled, not the map: a weight c p_j
of token j adds c p_j v_j, so that every kernel computes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.attention import ExtraKeys
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.attention_maps import in_main_network
from vdm_jax.networks.blocks.attention import Attention


def weighted_tokens(weights: Float[Array, "B G L"] | None) -> contextlib.AbstractContextManager[Any]:
    """In this context every cross-attention of the main network has these factors on its first tokens; with None it is
    as it is."""
    if weights is None:
        return contextlib.nullcontext()

    def intercept(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        found, module = call(*arguments, **options), context.module
        crosses = context.method_name == "crossing" and isinstance(module, Attention) and in_main_network(module)
        return (found[0], weighted(found[0], found[1], weights)) if crosses else found

    return nn.intercept_methods(intercept)


def weighted(
    q: Float[Array, "B *thw K D"], outside: ExtraKeys, weights: Float[Array, "B G L"]
) -> ExtraKeys:
    """Keys and values of tokens, of which the first have the values times the weights, in one group for each frame
    where the weights are of frames. Raises `UserError` for weights of other frames than the queries' or more
    tokens."""
    tokens, groups = outside.v.shape[2], max(weights.shape[1], outside.v.shape[1])
    if groups not in (1, q.shape[1]) or weights.shape[2] > tokens:
        raise UserError(f"token_weights of shape {list(weights.shape)} for cross-attention of {q.shape[1]} frames to "
                        f"{tokens} tokens; permitted: one for the clip or one for each of these frames, and up to as "
                        "many tokens", "token_weights.frames")
    scale = jnp.pad(weights, ((0, 0), (0, 0), (0, tokens - weights.shape[2])), constant_values=1)
    k, v = (jnp.broadcast_to(a, (len(a), groups, *a.shape[2:])) for a in outside[:2])
    mask = None if outside.mask is None else jnp.broadcast_to(outside.mask, (*v.shape[:2], tokens))
    return ExtraKeys(k, v * scale[..., None, None].astype(v.dtype), mask)
