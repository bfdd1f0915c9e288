"""Dense attention: the whole matrix of logits at once. The reference for every other kernel."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.block_mask import AnyMask, ExtraKeys, SequenceLayout
from vdm_jax.attention.kernels import tiles
from vdm_jax.attention.kernels.tiles import MASKED
from vdm_jax.attention.positions import relative_values


class Keys(NamedTuple):
    """A set of keys and values with its mask and bias, both broadcast against logits `[*b, K, Q, S]`."""

    k: Float[Array, "*batch S K D"]
    v: Float[Array, "*batch S K D"]
    mask: Bool[Array, " ..."] | None = None
    bias: Float[Array, " ..."] | None = None
    added: Callable[[Array], Array] | None = None  # from the weights `[*b, K, Q, S]`: added to the output
    block_mask: AnyMask | None = None  # hides keys next to the mask, the same for all sequences

    def seen(self) -> Bool[Array, " ..."] | None:
        """The mask and what the relation hides."""
        return self.mask if self.block_mask is None else joint(self.block_mask.mask(), self.mask)


def dense(q: Float[Array, "*batch Q K D"], *sets: Keys) -> Float[Array, "*batch Q K D"]:
    """Softmax attention over the union of sets of keys; logits and softmax are float32.

    Leading dimensions of a set broadcast against those of `q`. Heads stand in front of the tokens while it computes,
    and outputs are divided by the sum of the weights, not the weights themselves: on a CPU this is several times
    faster for many short sequences, since products then need no other layout and weights are passed over once less.
    Many logits are computed tile by tile there.
    """
    if all(keys.added is None for keys in sets):
        (queries, heads, features), count = q.shape[-3:], sum(s.k.shape[-3] for s in sets)
        if tiles.worthwhile(math.prod(q.shape[:-3]), heads, queries, count, features):
            return _tiled(q, *sets)
    q, logits = _heads_first(q * q.shape[-1] ** -0.5), []
    for keys in sets:
        part = jnp.einsum("...kqd,...ksd->...kqs", q, _heads_first(keys.k), preferred_element_type=jnp.float32)
        if keys.bias is not None:
            part = part + keys.bias
        if (seen := keys.seen()) is not None:
            part = jnp.where(seen, part, MASKED)
        logits.append(part)
    logits = jnp.concatenate(logits, axis=-1) if len(logits) > 1 else logits[0]
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total, dtype = weights.sum(axis=-1, keepdims=True), sets[0].v.dtype
    weights, out, start = weights.astype(dtype), 0.0, 0
    for keys in sets:
        part = weights[..., start : start + keys.k.shape[-3]]
        out += jnp.einsum("...kqs,...ksd->...kqd", part, _heads_first(keys.v), preferred_element_type=jnp.float32)
        if keys.added is not None:
            out += _heads_first(keys.added(part))
        start += keys.k.shape[-3]
    return _heads_first(out / total).astype(dtype)


def _tiled(q: Float[Array, "*batch Q K D"], *sets: Keys) -> Float[Array, "*batch Q K D"]:
    """`dense` by `tiles`, whose arrays have one dimension of sequences and one set of keys."""
    shape = q.shape[:-3]

    def rows(x: Array) -> Float[Array, "B S K D"]:
        return jnp.broadcast_to(x, (*shape, *x.shape[-3:])).reshape(-1, *x.shape[-3:])

    def joined(parts: list[Array | None], absent: bool | float) -> Array | None:
        """Masks or biases of all sets, their sequences in one dimension; what holds for all keeps dimensions of 1."""
        if all(part is None for part in parts):
            return None
        parts = [jnp.full(1, absent) if part is None else part for part in parts]
        parts = [part.reshape((1,) * (len(shape) + 3 - part.ndim) + part.shape) for part in parts]
        common = jnp.broadcast_shapes(*((*part.shape[:-1], 1) for part in parts))[:-1]
        parts = [jnp.broadcast_to(p, (*common, s.k.shape[-3])) for p, s in zip(parts, sets, strict=True)]
        out = jnp.concatenate(parts, axis=-1)
        if math.prod(out.shape[: len(shape)]) > 1:
            out = jnp.broadcast_to(out, (*shape, *out.shape[-3:]))
        return out.reshape(-1, *out.shape[-3:])

    k, v = (jnp.concatenate([rows(x) for x in same], axis=1) for same in zip(*((s.k, s.v) for s in sets), strict=True))
    alone = len(sets) == 1
    mask = joined([s.mask if alone else s.seen() for s in sets], True)
    out = tiles.attention(rows(q), k, v, mask, joined([s.bias for s in sets], 0.0),
                          sets[0].block_mask if alone else None)
    return out.reshape(q.shape).astype(sets[0].v.dtype)


def _heads_first(x: Float[Array, "*batch S K D"]) -> Float[Array, "*batch K S D"]:
    """Tokens and heads exchanged; its own inverse."""
    return jnp.swapaxes(x, -2, -3)


def attention(q, k, v, layout: SequenceLayout, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None,
              own: bool = True, offset_values: dict[str, Array] | None = None):
    """Dense attention for any pattern, alone in taking relative value vectors; see `vdm_jax.attention.kernels` for the
    arguments."""
    sets, valid = [], layout.key_valid(frame_valid)
    alone = own and extra_keys is None and offset_values is None
    if alone and layout.pattern.layout == "positions" and tiles.worthwhile(
            q.shape[0] * layout.tokens, q.shape[4], layout.shape[0], layout.shape[0], q.shape[5]):
        return _temporal(q, k, v, layout, bias, frame_valid)
    if own:
        added = None
        if offset_values is not None:
            added = functools.partial(relative_values, vectors=offset_values, layout=layout.pattern.layout,
                                      shape=layout.shape)
        sets.append(Keys(layout.rows(k), layout.rows(v), both(None, valid), bias, added, layout.block_mask()))
    if extra_keys is not None:
        keys, values, valid, block_mask = layout.extra_rows(extra_keys)
        sets.append(Keys(keys, values, both(block_mask.mask(), valid)))
    return layout.video(dense(layout.rows(q), *sets))


def _temporal(q, k, v, layout: SequenceLayout, bias: Array | None, frame_valid: Bool[Array, "B T"] | None
              ) -> Float[Array, "B T H W K D"]:
    """`attention` of every position by `tiles`, whose tokens stay where they are: positions are more heads."""
    tokens = [x.reshape(*x.shape[:2], -1, x.shape[5]) for x in (q, k, v)]
    if bias is not None:  # the same everywhere, or one for every position
        samples = 1 if bias.ndim == 3 or bias.shape[0] == 1 else q.shape[0]
        bias = bias.reshape(samples, -1, *bias.shape[-2:])
    mask = None if frame_valid is None else frame_valid[:, None, None, :]
    return tiles.attention(*tokens, mask, bias, layout.block_mask(), layout.tokens).reshape(q.shape).astype(v.dtype)


def both(mask: Bool[Array, "Q S"] | None, valid: Bool[Array, "B S"] | None) -> Bool[Array, " ..."] | None:
    """A static mask and the validity of keys as one mask that broadcasts against logits `[B, K, Q, S]`."""
    if valid is None:
        return mask
    return joint(mask, valid[:, None, None, :])


def joint(*masks: Bool[Array, " ..."] | None) -> Bool[Array, " ..."] | None:
    """What all masks show; None when there are none."""
    masks = [mask for mask in masks if mask is not None]
    return functools.reduce(jnp.logical_and, masks) if masks else None
