"""Linear attention: weights without a softmax, so that keys and values are summed once and no pair of tokens is formed.

Katharopoulos et al. 2020, arXiv 2006.16236; with rotary positions in the numerator alone, as SANA-Video has it (Chen et
al. 2025, arXiv 2509.24695). It is not a kernel of `attend`: it computes something else.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.patterns import by_heads
from vdm_jax.attention.products import Pattern, Shape, frame_table, products
from vdm_jax.errors import UserError

LEAST = 1e-12  # of the denominator; published is 1e-15 added to it


def linear_attend(
    q: Float[Array, "B T H W K D"], k: Float[Array, "B T H W K D"], v: Float[Array, "B T H W K D"], *,
    pattern: Pattern, turn: Callable[[Array], Array] = lambda x: x, frame_mask: Bool[np.ndarray, "T T"] | None = None,
    frame_valid: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T H W K D"]:
    """For each query q_i the mean of the values v_j that it sees, by weights `turn(f(q_i)) . turn(f(k_j))` over the sum
    of `f(q_i) . f(k_j)`, with f the ReLU. Products are in float32. A token whose features meet none gets zeros; by the
    published form, which only adds 1e-15 below, it would get values of 1e15, as turned features meet where others do
    not.

    The work grows with the tokens, `4 D^2` FLOPs per token and head: a frame is the sum of its `f(k_j) v_j^T`, and
    those of the frames that a frame sees are added.

    Args:
      pattern: which frame sees which; one in which a frame sees all positions of another or none.
      turn: what gives features their positions, such as `positions.rotary`.
      frame_mask: which frame may see which in addition, the same for all samples.
      frame_valid: which frames of each sample exist; tokens of the others are not seen.

    Raises `UserError` for patterns that do not relate whole frames.
    """
    check_whole_frames(pattern, q.shape[1:4])
    table = frame_table(pattern, q.shape[1:4], None if frame_mask is None else np.asarray(frame_mask, bool).tobytes())
    asking, keys = (jax.nn.relu(a.astype(jnp.float32)) for a in (q, k))
    if frame_valid is not None:
        keys = jnp.where(frame_valid[:, :, None, None, None, None], keys, 0)
    told = jnp.einsum("bthwkd,bthwke->btkde", turn(keys), v.astype(jnp.float32))
    found = jnp.einsum("bthwkd,btkde->bthwke", turn(asking), _seen(told, table))
    weight = jnp.einsum("bthwkd,btkd->bthwk", asking, _seen(keys.sum((2, 3)), table))[..., None]
    met = weight > LEAST
    return jnp.where(met, found / jnp.where(met, weight, 1), 0).astype(v.dtype)  # two: no gradient is NaN


def _seen(frames: Float[Array, "B T *rest"], table: Bool[np.ndarray, "T T"]) -> Float[Array, "B _ *rest"]:
    """For each frame the sum of those that it sees; one for all where all see all."""
    if table.all():
        return frames.sum(1, keepdims=True)
    return jnp.einsum("ts,bs...->bt...", jnp.asarray(table, frames.dtype), frames)


def linear_flops(pattern: Pattern, shape: Shape, heads: int, head_dim: int) -> int:
    """FLOPs of a clip, forward: two products per token, and the sums over the frames that a frame sees. Raises
    `UserError` as `linear_attend`."""
    check_whole_frames(pattern, shape)
    frames = shape[0]
    sums = 0 if frame_table(pattern, shape).all() else 2 * frames**2
    return heads * head_dim**2 * (4 * int(np.prod(shape)) + sums)


def check_whole_frames(pattern: Pattern, shape: Shape) -> None:
    """Raises `UserError` for patterns in which a token sees a part of a frame."""
    one = len(by_heads(pattern)) == 1 and pattern.layout != "positions" and pattern.token_order(shape) is None
    if not one or not all(term.covers_frame(shape[1:]) for term, _ in products(pattern, shape)):
        raise UserError(f"linear attention with pattern {pattern}; permitted: patterns that relate whole frames, such "
                        "as Full, Causal, BlockCausal, SparseCausal, Spatial", code="linear.pattern")
