"""Attention by blocks with an online softmax: memory linear in tokens forward and backward, for any pattern.

The softmax over blocks is that of Milakov & Gimelshein 2018 (1805.02867); recomputing the blocks of the backward pass
from the saved logsumexp is FlashAttention-2 (Dao 2023, 2307.08691). Blocks a pattern rules out are not in the list of
blocks that a query block goes through, and blocks that it fills skip the mask.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.kernels.xla import MASKED
from vdm_jax.attention.relation import FULL, PARTIAL, Bank, Relation, View

BLOCK = 512  # rows of queries and of keys per block


def attention(q, k, v, view: View, *, bias=None, frame_valid=None, external: Bank | None = None, own: bool = True):
    """Attention of any pattern in blocks; see `vdm_jax.attention.kernels` for the arguments."""
    rows, parts = view.rows(q), []
    if own:
        parts.append(blockwise(rows, view.rows(k), view.rows(v), view.relation(), bias=bias,
                               key_valid=view.key_valid(frame_valid)))
    if external is not None:
        keys, values, valid, relation = view.bank_rows(external)
        parts.append(blockwise(rows, keys, values, relation, key_valid=valid))
    return view.video(merge(*parts).astype(v.dtype))


def merge(*parts: tuple[Float[Array, "b q k d"], Float[Array, "b k q"]]) -> Float[Array, "b q k d"]:
    """Attention over the union of sets of keys from (output, logsumexp) of each set."""
    if len(parts) == 1:
        return parts[0][0]
    weights = jax.nn.softmax(jnp.stack([lse for _, lse in parts]), axis=0)  # [sets, B, K, Q]
    weights = jnp.swapaxes(weights, 2, 3)[..., None]
    return sum(weight * out for weight, (out, _) in zip(weights, parts, strict=True))


def blockwise(
    q: Float[Array, "b q k d"],
    k: Float[Array, "b s k d"],
    v: Float[Array, "b s k d"],
    relation: Relation,
    *,
    bias: Float[Array, "*c k q s"] | None = None,
    key_valid: Bool[Array, "b s"] | None = None,
    block: int | None = None,
) -> tuple[Float[Array, "b q k d"], Float[Array, "b k q"]]:
    """Output (float32) and logsumexp of the logits (float32) of attention between two sequences.

    Both outputs have gradients, so that results over several sets of keys can be merged. A bias is read block by block
    but has itself as many entries as the logits of one batch entry, and so has its gradient. Reverse mode only.
    """
    sizes = tuple(min(block or BLOCK, math.ceil(length / 8) * 8) for length in relation.lengths)
    plan = _Plan(relation, *sizes)
    q, k, v = (_to_blocks(a, size) for a, size in zip((q, k, v), (sizes[0], sizes[1], sizes[1]), strict=True))
    if bias is not None:
        bias = bias if bias.ndim == 4 else bias[None]
        bias = jnp.pad(bias, ((0, 0), (0, 0), *((0, -n % size) for n, size in zip(relation.lengths, sizes,
                                                                                  strict=True))))
    if key_valid is not None:
        key_valid = jnp.pad(key_valid, ((0, 0), (0, -key_valid.shape[1] % sizes[1])))
        key_valid = jnp.moveaxis(key_valid.reshape(key_valid.shape[0], -1, sizes[1]), 1, 0)  # [blocks, B, s]
    out, lse = _attend(plan, q, k, v, bias, key_valid)
    count, queries = out.shape[0], relation.lengths[0]
    out = jnp.transpose(out, (1, 0, 3, 2, 4)).reshape(out.shape[1], count * sizes[0], *out.shape[2::2])[:, :queries]
    lse = jnp.transpose(lse, (1, 2, 0, 3)).reshape(*lse.shape[1:3], count * sizes[0])[..., :queries]
    return out, lse


def _to_blocks(x: Float[Array, "b s k d"], size: int) -> Float[Array, "n b k z d"]:
    """Zero-padded blocks in front, so that a loop over blocks reads contiguous memory."""
    batch, length, heads, dim = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % size), (0, 0), (0, 0)))
    return jnp.transpose(x.reshape(batch, -1, size, heads, dim), (1, 0, 3, 2, 4))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which key blocks each query block goes through: first those without, then those with a mask."""

    relation: Relation
    block_q: int
    block_k: int

    def key_blocks(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Per query block the numbers of its key blocks of a kind, `[blocks, most]`, and how many, `[blocks]`."""
        chosen = self.relation.blocks(self.block_q, self.block_k) == kind
        counts = chosen.sum(axis=1)
        most = int(counts.max(initial=0))
        return np.argsort(~chosen, axis=1, kind="stable")[:, :most].astype(np.int32), counts.astype(np.int32)

    def loop(self, i: Array, body, carry):
        """`body(masked, j, carry)` for every key block `j` of query block `i`."""
        for kind in (FULL, PARTIAL):
            numbers, counts = self.key_blocks(kind)
            if numbers.shape[1] == 0:
                continue
            masked, same = kind == PARTIAL, bool((counts == counts[0]).all())
            count = int(counts[0]) if same else jnp.asarray(counts)[i]
            if (numbers == np.arange(numbers.shape[1])).all():  # in order from the first on: no list is needed
                step = functools.partial(body, masked)
            else:
                row = jnp.asarray(numbers)[i]
                step = functools.partial(lambda masked, row, n, carry: body(masked, row[n], carry), masked, row)
            carry = lax.fori_loop(0, count, step, carry)
        return carry

    def logits(self, masked: bool, i, j, q, k, bias, key_valid) -> Float[Array, "b k q s"]:
        """Masked float32 logits of a block; `q` is scaled."""
        s = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=jnp.float32)
        if bias is not None:
            start = (0, 0, i * self.block_q, j * self.block_k)
            s = s + lax.dynamic_slice(bias, start, (*bias.shape[:2], self.block_q, self.block_k))
        if masked:
            rows, columns = i * self.block_q + jnp.arange(self.block_q), j * self.block_k + jnp.arange(self.block_k)
            s = jnp.where(self.relation.sees(rows[:, None], columns[None, :]), s, MASKED)
        if key_valid is not None:
            s = jnp.where(key_valid[j][:, None, None, :], s, MASKED)
        return s


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q, k, v, bias, key_valid):
    """Output `[n, B, K, z, D]` and logsumexp `[n, B, K, z]` of blocks of queries, both float32."""
    scale = q.shape[-1] ** -0.5

    def query_block(args):
        i, q_i = args

        def step(masked, j, carry):
            top, total, out = carry
            s = plan.logits(masked, i, j, q_i, k[j], bias, key_valid)
            new_top = jnp.maximum(top, s.max(axis=-1))
            p, shrink = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
            out = out * shrink[..., None] + jnp.einsum("bkqs,bksd->bkqd", p.astype(v.dtype), v[j],
                                                       preferred_element_type=jnp.float32)
            return new_top, total * shrink + p.sum(axis=-1), out

        q_i = q_i * scale
        zero = q_i[..., 0].astype(jnp.float32) * 0
        start = (zero + MASKED, zero, q_i.astype(jnp.float32) * 0)
        top, total, out = plan.loop(i, step, start)
        total = jnp.where(total == 0, 1.0, total)  # no block at all: zeros
        return out / total[..., None], top + jnp.log(total)

    return lax.map(query_block, (jnp.arange(q.shape[0]), q))


def _forward(plan, q, k, v, bias, key_valid):
    out, lse = _attend(plan, q, k, v, bias, key_valid)
    return (out, lse), (q, k, v, bias, key_valid, out, lse)


def _backward(plan, saved, cotangents):
    q, k, v, bias, key_valid, out, lse = saved
    d_out, d_lse = cotangents
    scale = q.shape[-1] ** -0.5
    # d logits = p * (d p - delta); the logsumexp's own cotangent enters through p alone.
    delta = (d_out * out).sum(axis=-1) - d_lse

    def query_block(carry, args):
        i, q_i, do, lse_i, delta_i = args
        q_i, do = q_i * scale, do.astype(v.dtype)

        def step(masked, j, carry):
            dq, dk, dv, db = carry
            p = jnp.exp(plan.logits(masked, i, j, q_i, k[j], bias, key_valid) - lse_i[..., None])
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

        dq, *carry = plan.loop(i, step, (q_i.astype(jnp.float32) * 0, *carry))
        return tuple(carry), dq * scale

    start = (k.astype(jnp.float32) * 0, v.astype(jnp.float32) * 0,
             None if bias is None else bias.astype(jnp.float32) * 0)
    (dk, dv, db), dq = lax.scan(query_block, start, (jnp.arange(q.shape[0]), q, d_out, lse, delta))
    db = None if bias is None else db.astype(bias.dtype)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), db, None


_attend.defvjp(_forward, _backward)
