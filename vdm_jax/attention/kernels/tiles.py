"""Dense attention on a CPU, tile by tile: some sequences and heads, some of their queries, all keys of these.

The logits of a tile stay in the cache and in memory that the process already has; the logits of many sequences at once
are a new piece of memory in every call, and the system clears it page by page. The backward pass recomputes the weights
of a tile from the saved logsumexp (Dao 2023, 2307.08691). A tile leaves out the keys before the first and after the
last that it sees, so that causal attention computes what it shows.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.block_mask import FULL, BlockMask
from vdm_jax.parallel.compiling import target_platform

MASKED = -1e30  # finite, so that a fully masked row gives an average instead of NaN; `attend` turns it into zeros
TILE = 2**19  # logits
QUERIES = 512  # most in a tile
FEWEST = 64  # queries of a sequence from which on tiles are worth their copies
RUNS = 16  # most runs of tiles that see different keys; each is compiled


def available() -> bool:
    """Whether there is one CPU to compute for. The compiler could not split loops over sequences among devices, so
    arrays that a mesh shards are left to it."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1 or all(kind == AxisType.Manual for kind in mesh.axis_types)
    return alone and target_platform() == "cpu"


def worthwhile(batch: int, heads: int, queries: int, keys: int) -> bool:
    """Whether logits of these sizes are better computed in tiles: when they are more than one tile."""
    return available() and queries >= FEWEST and batch * heads * queries * keys > TILE


def attention(
    q: Float[Array, "B Q K D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    mask: Bool[Array, "_ _ _ _"] | None = None,
    bias: Float[Array, "_ _ _ _"] | None = None,
    block_mask: BlockMask | None = None,
) -> Float[Array, "B Q K D"]:
    """Softmax attention (float32); mask and bias broadcast against the logits `[B, K, Q, S]`.

    `block_mask` hides keys next to the mask, the same for all sequences and heads.
    """
    queries = q.shape[1]
    block_mask = None if block_mask is not None and block_mask.everything else block_mask
    plan = _plan(q.shape[0], q.shape[2], queries, k.shape[1], block_mask)
    missing = plan.counts[2] * plan.queries - queries
    if missing:  # rows of queries added until tiles are full
        q = jnp.pad(q, ((0, 0), (0, missing), (0, 0), (0, 0)))
        mask, bias = (x if x is None or x.shape[2] == 1 else jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)))
                      for x in (mask, bias))
    return _attend(plan, q, k, v, mask, bias)[0][:, :queries]


@dataclasses.dataclass(frozen=True)
class _Run:
    """Tiles from `first` to before `last` that see keys from `start` to before `stop`, with holes if `masked`."""

    first: int
    last: int
    start: int
    stop: int
    masked: bool

    def keys(self, x):
        """The seen keys of `[b, K, S, D]`, or of its `at`."""
        return x[:, :, self.start : self.stop]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Sizes of a tile, how many tiles there are of sequences, of heads and of queries, and what the latter see."""

    batch: int
    heads: int
    queries: int
    counts: tuple[int, int, int]
    runs: tuple[_Run, ...]
    block_mask: BlockMask | None = None

    def start(self, group: Array, tile: Array | int) -> tuple[Array | int, Array | int, Array | int]:
        """The first sequence, head and query of a tile."""
        return group // self.counts[1] * self.batch, group % self.counts[1] * self.heads, tile * self.queries

    def rows(self, x: Float[Array, "B N K D"], group: Array, tile: Array | None, order: str = "bknd") -> Array:
        """The tokens of a tile, `[b, K, n, D]` or in another order; all tokens where no tile is given."""
        batch, head, row = self.start(group, 0 if tile is None else tile)
        sizes = (self.batch, x.shape[1] if tile is None else self.queries, self.heads, x.shape[3])
        part = lax.dynamic_slice(x, (batch, row, head, 0), sizes)
        return jnp.transpose(part, ["bnkd".index(axis) for axis in order])

    def write(self, x: Float[Array, "B N K D"], part: Array, group: Array, tile: Array | None, order: str = "bknd"
              ) -> Float[Array, "B N K D"]:
        """The inverse of `rows`."""
        batch, head, row = self.start(group, 0 if tile is None else tile)
        part = jnp.transpose(part, [order.index(axis) for axis in "bnkd"])
        return lax.dynamic_update_slice(x, part, (batch, row, head, 0))

    def place(self, x: Array, run: _Run, group: Array, tile: Array) -> tuple[Array | int, ...]:
        """Where the part of a mask or bias for a tile begins; its dimensions of 1 hold for all."""
        starts = (*self.start(group, tile), run.start)
        return tuple(start if size > 1 else 0 for start, size in zip(starts, x.shape, strict=True))

    def part(self, x: Array, run: _Run, group: Array, tile: Array) -> Array:
        """The part of a mask or bias for a tile."""
        sizes = (self.batch, self.heads, self.queries, run.stop - run.start)
        sizes = tuple(min(size, whole) for size, whole in zip(sizes, x.shape, strict=True))
        return lax.dynamic_slice(x, self.place(x, run, group, tile), sizes)

    def each(self, body, carry):
        """`body(run, carry, tile)` for all tiles of queries in turn."""
        for run in self.runs:
            step = functools.partial(body, run)
            if run.last - run.first == 1:
                carry = step(carry, jnp.int32(run.first))
            else:
                carry = lax.scan(lambda c, i, step=step: (step(c, i), None), carry, jnp.arange(run.first, run.last))[0]
        return carry


def _plan(batch: int, heads: int, queries: int, keys: int, block_mask: BlockMask | None) -> _Plan:
    """Tiles of at most `TILE` logits: first all queries, then more heads, then more sequences."""
    most = min(QUERIES, max(TILE // keys, QUERIES // 8))
    if block_mask is not None and block_mask.run[0] > 1:  # tiles that end where frames do need no mask
        run = block_mask.run[0]
        rows = -(-run // -(-run // most))
        rows *= max(QUERIES // 2 // rows, 1) if rows == run else 1
    else:
        rows = -(-queries // -(-queries // most))
    many_heads = _divisor(heads, TILE // (rows * keys))
    many = _divisor(batch, TILE // (rows * keys * heads)) if many_heads == heads else 1
    parts = -(-queries // rows)
    return _Plan(many, many_heads, rows, (batch // many, heads // many_heads, parts),
                 _runs(block_mask, parts, rows, keys), block_mask)


def _runs(block_mask: BlockMask | None, tiles: int, rows: int, keys: int) -> tuple[_Run, ...]:
    """Runs of tiles that see the same keys; neighbours are joined while there are too many."""
    if block_mask is None:
        return (_Run(0, tiles, 0, keys, False),)
    width = math.gcd(block_mask.run[1], keys)
    blocks = block_mask.blocks(rows, width)
    runs: list[_Run] = []
    for i, row in enumerate(blocks):
        seen = np.flatnonzero(row)
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 1)
        # Rows past the end are padding, which a block map takes for something partly seen.
        masked = bool((row[first:last] != FULL).any())
        runs.append(_Run(i, i + 1, first * width, min(last * width, keys), masked))
    while True:
        joined = [runs[0]]
        limit = len(runs) > RUNS
        for run in runs[1:]:
            before = joined[-1]
            same = (run.start, run.stop, run.masked) == (before.start, before.stop, before.masked)
            if same or (limit and before.last - before.first == run.last - run.first):
                start, stop = min(run.start, before.start), max(run.stop, before.stop)
                joined[-1] = _Run(before.first, run.last, start, stop, run.masked or before.masked or not same)
            else:
                joined.append(run)
        if len(joined) == len(runs) or len(joined) <= RUNS:
            return tuple(joined)
        runs = joined


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`; 1 at least."""
    return next(d for d in range(max(min(number, most), 1), 0, -1) if number % d == 0)


def _logits(plan: _Plan, run: _Run, q, k, mask, bias, group, tile, turned: bool = False) -> Float[Array, "N K _ _"]:
    """Masked float32 logits of a tile, `[N, K, Q, S]` or, turned, `[N, K, S, Q]`."""
    logits = _product("bksd,bkqd->bksq" if turned else "bkqd,bksd->bkqs", *((k, q) if turned else (q, k)))
    mask, bias = (None if x is None else plan.part(x, run, group, tile) for x in (mask, bias))
    if run.masked:
        rows, columns = tile * plan.queries + jnp.arange(plan.queries), jnp.arange(run.start, run.stop)
        seen = plan.block_mask.sees(rows[:, None], columns[None, :])
        mask = seen[None, None] if mask is None else mask & seen
    if turned:
        mask, bias = (None if x is None else jnp.swapaxes(x, 2, 3) for x in (mask, bias))
    if bias is not None:
        logits = logits + bias
    return logits if mask is None else jnp.where(mask, logits, MASKED)


def _product(how: str, a: Array, b: Array) -> Array:
    """A product of matrices in float32."""
    return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q, k, v, mask, bias):
    """Output `[B, Q, K, D]` and logsumexp `[B, Q, K, 1]`, both float32."""
    scale = q.shape[-1] ** -0.5

    def group(carry, n):
        k_n, v_n = plan.rows(k, n, None), plan.rows(v, n, None)

        def tile(run, carry, i):
            out, lse = carry
            logits = _logits(plan, run, plan.rows(q, n, i) * scale, run.keys(k_n), mask, bias, n, i)
            top = logits.max(axis=-1, keepdims=True)
            weights = jnp.exp(logits - top)
            total = weights.sum(axis=-1, keepdims=True)
            part = _product("bkqs,bksd->bkqd", weights.astype(v.dtype), run.keys(v_n)) / total
            return plan.write(out, part, n, i), plan.write(lse, top + jnp.log(total), n, i)

        return plan.each(tile, carry), None

    start = jnp.zeros(q.shape, jnp.float32), jnp.zeros((*q.shape[:3], 1), jnp.float32)
    return lax.scan(group, start, jnp.arange(plan.counts[0] * plan.counts[1]))[0]


def _forward(plan, q, k, v, mask, bias):
    out, lse = _attend(plan, q, k, v, mask, bias)
    return (out, lse), (q, k, v, mask, bias, out, lse)


def _backward(plan, saved, cotangents):
    q, k, v, mask, bias, out, lse = saved
    d_out, scale = cotangents[0], q.shape[-1] ** -0.5
    delta = (d_out * out).sum(axis=-1, keepdims=True)
    d_out = d_out.astype(v.dtype)

    def group(carry, n):
        *gradients, d_bias = carry
        k_n, k_turned, v_n = plan.rows(k, n, None), plan.rows(k, n, None, "bkdn"), plan.rows(v, n, None)

        def tile(run, carry, i):
            """Weights and gradients of logits are `[b, K, S, q]` here: products with the keys in front need no copies
            of them in another order."""
            dq, dk, dv, d_bias = carry
            q_i, d_out_i, lse_i, delta_i = (plan.rows(x, n, i) for x in (q, d_out, lse, delta))
            q_i = q_i * scale
            logits = _logits(plan, run, q_i, run.keys(k_n), mask, bias, n, i, turned=True)
            weights = jnp.exp(logits - jnp.swapaxes(lse_i, 2, 3))
            d_logits = weights * (_product("bksd,bkqd->bksq", run.keys(v_n), d_out_i) - jnp.swapaxes(delta_i, 2, 3))
            if d_bias is not None:
                d_bias = _add(plan, run, d_bias, jnp.swapaxes(d_logits, 2, 3), n, i)
            weights, d_logits = weights.astype(v.dtype), d_logits.astype(k.dtype)
            dk = run.keys(dk.at).add(_product("bksq,bkqd->bksd", d_logits, q_i))
            dv = run.keys(dv.at).add(_product("bksq,bkqd->bksd", weights, d_out_i))
            d_q = _product("bkds,bksq->bkdq", k_turned[..., run.start : run.stop], d_logits) * scale
            return plan.write(dq, d_q, n, i, "bkdn"), dk, dv, d_bias

        dq, dk, dv = gradients
        zeros = jnp.zeros(k_n.shape, jnp.float32)
        dq, dk_n, dv_n, d_bias = plan.each(tile, (dq, zeros, zeros, d_bias))
        return (dq, plan.write(dk, dk_n, n, None), plan.write(dv, dv_n, n, None), d_bias), None

    start = [None if x is None else jnp.zeros(x.shape, jnp.float32) for x in (q, k, v, bias)]
    (*gradients, d_bias), _ = lax.scan(group, tuple(start), jnp.arange(plan.counts[0] * plan.counts[1]))
    dq, dk, dv = (d.astype(x.dtype) for d, x in zip(gradients, (q, k, v), strict=True))
    return dq, dk, dv, None, None if bias is None else d_bias.astype(bias.dtype)


def _add(plan: _Plan, run: _Run, d_bias: Array, d_logits: Float[Array, "N K Q S"], group, tile) -> Array:
    """The gradient of the bias with that of a tile."""
    shared = tuple(i for i, size in enumerate(d_bias.shape) if size == 1)
    part = plan.part(d_bias, run, group, tile) + d_logits.sum(axis=shared, keepdims=True)
    return lax.dynamic_update_slice(d_bias, part, plan.place(d_bias, run, group, tile))


_attend.defvjp(_forward, _backward)
