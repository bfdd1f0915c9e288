"""Attention by blocks with an online softmax: memory linear in tokens forward and backward, for any pattern.

The softmax over blocks is that of Milakov & Gimelshein 2018 (1805.02867); recomputing the blocks of the backward pass
from the saved logsumexp is FlashAttention-2 (Dao 2023, 2307.08691). Blocks a pattern rules out are not in the list of
blocks that a query block goes through, and blocks that it fills skip the mask.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from vdm_jax.attention.block_mask import FULL, PARTIAL, AnyMask, ExtraKeys, SequenceLayout
from vdm_jax.attention.kernels.xla import MASKED

Ids = tuple[Int[ArrayLike, " F"], Int[ArrayLike, " G"]]  # numbers of the query frames and of the key frames

BLOCK = 512  # rows of queries and of keys per block


def attention(q, k, v, layout: SequenceLayout, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None,
              own: bool = True):
    """Attention of any pattern in blocks; see `vdm_jax.attention.kernels` for the arguments."""
    rows, parts = layout.rows(q), []
    if own:
        parts.append(blockwise(rows, layout.rows(k), layout.rows(v), layout.block_mask(), bias=bias,
                               key_valid=layout.key_valid(frame_valid)))
    if extra_keys is not None:
        keys, values, valid, block_mask = layout.extra_rows(extra_keys)
        parts.append(blockwise(rows, keys, values, block_mask, key_valid=valid))
    return layout.video(merge(*parts).astype((v if own else extra_keys.v).dtype))


def merge(*parts: tuple[Float[Array, "B Q K D"], Float[Array, "B K Q"]]) -> Float[Array, "B Q K D"]:
    """Attention over the union of sets of keys from (output, logsumexp) of each set."""
    if len(parts) == 1:
        return parts[0][0]
    weights = jax.nn.softmax(jnp.stack([lse for _, lse in parts]), axis=0)  # [sets, B, K, Q]
    weights = jnp.swapaxes(weights, 2, 3)[..., None]
    return sum(weight * out for weight, (out, _) in zip(weights, parts, strict=True))


def blockwise(
    q: Float[Array, "B Q K D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    block_mask: AnyMask,
    *,
    bias: Float[Array, "*rest K Q S"] | None = None,
    key_valid: Bool[Array, "B S"] | None = None,
    block: int | None = None,
    ids: Ids | None = None,
) -> tuple[Float[Array, "B Q K D"], Float[Array, "B K Q"]]:
    """Output (float32) and logsumexp of the logits (float32) of attention between two sequences.

    `ids`: frame numbers that are known only when the program runs, for a relation that asks for them (`ShardMask`).

    Both outputs have gradients, so that results over several sets of keys can be merged. A bias is read block by block
    but has itself as many entries as the logits of one batch entry, and so has its gradient. Reverse mode only.
    """
    plan = _plan(block_mask, block)
    sizes = plan.block_q, plan.block_k
    q, k, v, key_valid = _operands(plan, q, k, v, key_valid)
    if bias is not None:
        bias = bias if bias.ndim == 4 else bias[None]
        bias = jnp.pad(bias, ((0, 0), (0, 0), *((0, -n % size) for n, size in zip(block_mask.lengths, sizes,
                                                                                  strict=True))))
    out, lse = _attend(plan, q, k, v, bias, key_valid, ids)
    lse = jnp.transpose(lse, (1, 2, 0, 3)).reshape(*lse.shape[1:3], -1)[..., : block_mask.lengths[0]]
    return _from_blocks(out, block_mask.lengths[0]), lse


def blockwise_gradients(
    q: Float[Array, "B Q K D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    block_mask: AnyMask,
    *,
    lse: Float[Array, "B K Q"],
    delta: Float[Array, "B K Q"],
    d_out: Float[Array, "B Q K D"],
    key_valid: Bool[Array, "B S"] | None = None,
    ids: Ids | None = None,
) -> tuple[Float[Array, "B Q K D"], Float[Array, "B S K D"], Float[Array, "B S K D"]]:
    """What these keys contribute to the gradients of q, k and v (float32) where the softmax is over more keys.

    `lse` is the logsumexp over all keys, `delta` the product of output and its cotangent `d_out`, minus the cotangent
    of the logsumexp. Summed over sets of keys this is the whole gradient of q.
    """
    plan = _plan(block_mask, None)
    q, k, v, key_valid = _operands(plan, q, k, v, key_valid)
    d_out = _to_blocks(d_out, plan.block_q)

    def rows(x):  # [B, K, Q] to [n, B, K, z]; rows of padding have no cotangent
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % plan.block_q)))
        return jnp.transpose(x.reshape(*x.shape[:2], -1, plan.block_q), (2, 0, 1, 3))

    dq, dk, dv, _ = _gradients(plan, q, k, v, None, key_valid, ids, rows(lse), rows(delta), d_out)
    queries, keys = block_mask.lengths
    return _from_blocks(dq, queries), _from_blocks(dk, keys), _from_blocks(dv, keys)


def _operands(plan: _Plan, q, k, v, key_valid):
    """Everything in blocks in front: q `[n, B, K, z, D]`, k and v likewise, validity `[n, B, s]`."""
    size = plan.block_k
    if key_valid is not None:
        key_valid = jnp.pad(key_valid, ((0, 0), (0, -key_valid.shape[1] % size)))
        key_valid = jnp.moveaxis(key_valid.reshape(key_valid.shape[0], -1, size), 1, 0)
    return _to_blocks(q, plan.block_q), _to_blocks(k, size), _to_blocks(v, size), key_valid


def _to_blocks(x: Float[Array, "B S K D"], size: int) -> Float[Array, "N B K Z D"]:
    """Zero-padded blocks in front, so that a loop over blocks reads contiguous memory."""
    batch, length, heads, dim = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % size), (0, 0), (0, 0)))
    return jnp.transpose(x.reshape(batch, -1, size, heads, dim), (1, 0, 3, 2, 4))


def _from_blocks(x: Float[Array, "N B K Z D"], length: int) -> Float[Array, "B S K D"]:
    """Back to sequences, without the padding."""
    return jnp.transpose(x, (1, 0, 3, 2, 4)).reshape(x.shape[1], -1, x.shape[2], x.shape[4])[:, :length]


def _plan(block_mask: AnyMask, block: int | None) -> _Plan:
    return _Plan(block_mask, *(min(block or BLOCK, math.ceil(length / 8) * 8) for length in block_mask.lengths))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which key blocks each query block goes through: first those without, then those with a mask."""

    block_mask: AnyMask
    block_q: int
    block_k: int

    def key_blocks(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Per query block the numbers of its key blocks of a kind, `[blocks, most]`, and how many, `[blocks]`."""
        chosen = self.block_mask.blocks(self.block_q, self.block_k) == kind
        counts = chosen.sum(axis=1)
        most = int(counts.max(initial=0))
        return np.argsort(~chosen, axis=1, kind="stable")[:, :most].astype(np.int32), counts.astype(np.int32)

    def live(self, ids: Ids | None) -> Bool[Array, "N M"] | None:
        """Which blocks hold a visible pair, where that is known only when the program runs."""
        return None if ids is None else self.block_mask.live(self.block_q, self.block_k, ids)

    def loop(self, i: Array, body, carry, live: Bool[Array, "N M"] | None) -> Any:
        """`body(masked, j, carry)` for every key block `j` of query block `i` that is live."""
        for kind in (FULL, PARTIAL):
            numbers, counts = self.key_blocks(kind)
            if numbers.shape[1] == 0:
                continue
            masked, same = kind == PARTIAL, bool((counts == counts[0]).all())
            count = int(counts[0]) if same else jnp.asarray(counts)[i]
            visit = functools.partial(body, masked)
            if live is not None:
                visit = functools.partial(_if_live, live[i], visit)
            if (numbers == np.arange(numbers.shape[1])).all():  # in order from the first on: no list is needed
                step = visit
            else:
                step = functools.partial(lambda visit, row, n, carry: visit(row[n], carry), visit,
                                         jnp.asarray(numbers)[i])
            carry = lax.fori_loop(0, count, step, carry)
        return carry

    def logits(self, masked: bool, i, j, q, k, bias, key_valid, ids) -> Float[Array, "B K Q S"]:
        """Masked float32 logits of a block; `q` is scaled."""
        s = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=jnp.float32)
        if bias is not None:
            start = (0, 0, i * self.block_q, j * self.block_k)
            s = s + lax.dynamic_slice(bias, start, (*bias.shape[:2], self.block_q, self.block_k))
        if masked:
            rows, columns = i * self.block_q + jnp.arange(self.block_q), j * self.block_k + jnp.arange(self.block_k)
            known = () if ids is None else (ids,)
            s = jnp.where(self.block_mask.sees(rows[:, None], columns[None, :], *known), s, MASKED)
        if key_valid is not None:
            s = jnp.where(key_valid[j][:, None, None, :], s, MASKED)
        return s


def _if_live(live: Bool[Array, " ..."], visit, j, carry) -> Any:
    """`visit(j, carry)` where key block `j` is live."""
    return lax.cond(live[j], visit, lambda _, carry: carry, j, carry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q, k, v, bias, key_valid, ids):
    """Output `[n, B, K, z, D]` and logsumexp `[n, B, K, z]` of blocks of queries, both float32."""
    scale, live = q.shape[-1] ** -0.5, plan.live(ids)

    def query_block(args):
        i, q_i = args

        def step(masked, j, carry):
            top, total, out = carry
            s = plan.logits(masked, i, j, q_i, k[j], bias, key_valid, ids)
            new_top = jnp.maximum(top, s.max(axis=-1))
            p, shrink = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
            out = out * shrink[..., None] + jnp.einsum("bkqs,bksd->bkqd", p.astype(v.dtype), v[j],
                                                       preferred_element_type=jnp.float32)
            return new_top, total * shrink + p.sum(axis=-1), out

        q_i = q_i * scale
        zero = q_i[..., 0].astype(jnp.float32) * 0
        start = (zero + MASKED, zero, q_i.astype(jnp.float32) * 0)
        top, total, out = plan.loop(i, step, start, live)
        total = jnp.where(total == 0, 1.0, total)  # no block at all: zeros
        return out / total[..., None], top + jnp.log(total)

    return lax.map(query_block, (jnp.arange(q.shape[0]), q))


def _forward(plan, q, k, v, bias, key_valid, ids):
    out, lse = _attend(plan, q, k, v, bias, key_valid, ids)
    return (out, lse), (q, k, v, bias, key_valid, ids, out, lse)


def _backward(plan, saved, cotangents):
    q, k, v, bias, key_valid, ids, out, lse = saved
    d_out, d_lse = cotangents
    # d logits = p * (d p - delta); the logsumexp's own cotangent enters through p alone.
    delta = (d_out * out).sum(axis=-1) - d_lse
    gradients = _gradients(plan, q, k, v, bias, key_valid, ids, lse, delta, d_out)
    cast = (None if a is None else g.astype(a.dtype) for g, a in zip(gradients, (q, k, v, bias), strict=True))
    return *cast, None, None


def _gradients(plan: _Plan, q, k, v, bias, key_valid, ids, lse, delta, d_out):
    """Gradients (float32) of q, k, v and bias from rows' statistics; all in blocks."""
    scale, live = q.shape[-1] ** -0.5, plan.live(ids)

    def query_block(carry, args):
        i, q_i, do, lse_i, delta_i = args
        q_i, do = q_i * scale, do.astype(v.dtype)

        def step(masked, j, carry):
            dq, dk, dv, db = carry
            p = jnp.exp(plan.logits(masked, i, j, q_i, k[j], bias, key_valid, ids) - lse_i[..., None])
            dp = jnp.einsum("bkqd,bksd->bkqs", do, v[j], preferred_element_type=jnp.float32)
            ds = p * (dp - delta_i[..., None])
            if db is not None:
                part = ds if db.shape[0] > 1 or ds.shape[0] == 1 else ds.sum(axis=0, keepdims=True)
                place = (0, 0, i * plan.block_q, j * plan.block_k)
                db = lax.dynamic_update_slice(db, part, place)
            ds, p = ds.astype(k.dtype), p.astype(v.dtype)
            dv = dv.at[j].add(jnp.einsum("bkqs,bkqd->bksd", p, do, preferred_element_type=jnp.float32))
            dk = dk.at[j].add(jnp.einsum("bkqs,bkqd->bksd", ds, q_i, preferred_element_type=jnp.float32))
            return dq + jnp.einsum("bkqs,bksd->bkqd", ds, k[j], preferred_element_type=jnp.float32), dk, dv, db

        dq, *carry = plan.loop(i, step, (q_i.astype(jnp.float32) * 0, *carry), live)
        return tuple(carry), dq * scale

    start = (k.astype(jnp.float32) * 0, v.astype(jnp.float32) * 0,
             None if bias is None else bias.astype(jnp.float32) * 0)
    (dk, dv, db), dq = lax.scan(query_block, start, (jnp.arange(q.shape[0]), q, d_out, lse, delta))
    return dq, dk, dv, db


_attend.defvjp(_forward, _backward)
