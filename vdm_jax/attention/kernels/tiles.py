"""Dense attention on a CPU, tile by tile: some sequences and heads, some of their queries, all keys that these see.

The arrays of a tile stay in the cache and in memory that the process already has; the logits of many sequences at once
are a new piece of memory in every call, and the system clears it page by page. The backward pass recomputes the weights
of a tile from the saved logsumexp (Dao 2023, 2307.08691). A tile reads the runs of keys that its queries see, so that
causal and sparse-causal attention compute what they show.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.block_mask import EMPTY, FULL, AnyMask
from vdm_jax.parallel.compiling import processors, target_platform

MASKED = -1e30  # finite, so that a fully masked row gives an average instead of NaN; `attend` turns it into zeros
TILE = 2**17  # logits, or features of the queries where these are more, with several heads; twice as many with one.
# Half as much with few keys, or for one thread, whose cache should hold it; a quarter for both
QUERIES = 512  # most in a tile; a quarter with few keys, where more heads, which lie side by side in memory, gain more
LEAST = 128  # queries in a tile, whatever its keys: threads share the rows of a product by 64; one thread needs half
ABREAST = 4  # tiles in the body of a loop, which threads share; with fewer the compiler leaves all to one thread
WIDE = 1024  # keys from which on threads share the products of one tile instead
FEWEST = 64  # rows of a frame from which on a tile need not span several frames
RUNS = 16  # most runs of tiles that see different keys; each is compiled
SHORT = 2  # keys per feature up to which the gradients of the logits are turned for those of the queries
PIECES = 4  # most runs of neighbouring keys that a tile reads; with more it reads all from the first to the last


def available() -> bool:
    """Whether there is one CPU to compute for. The compiler could not split loops over sequences among devices, so
    arrays that a mesh shards are left to it."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1 or all(kind == AxisType.Manual for kind in mesh.axis_types)
    return alone and target_platform() == "cpu"


def threads() -> int:
    """Threads that compute for one device: devices of a process that share the work share its processors."""
    mesh = jax.sharding.get_abstract_mesh()
    return max(1, processors() // (1 if mesh.empty else min(mesh.size, jax.local_device_count("cpu"))))


def worthwhile(sequences: int, heads: int, queries: int, keys: int, features: int) -> bool:
    """Whether attention of these sizes is better computed in tiles: when it is more than one tile."""
    return available() and sequences * heads * queries * max(keys, features) > TILE


def attention(
    q: Float[Array, "B Q M D"],
    k: Float[Array, "B S M D"],
    v: Float[Array, "B S M D"],
    mask: Bool[Array, "_ _ _ _"] | None = None,
    bias: Float[Array, "_ _ _ _"] | None = None,
    block_mask: AnyMask | None = None,
    places: int = 1,
) -> Float[Array, "B Q M D"]:
    """Softmax attention (float32) of `M` heads, which are those of several `places` side by side: in temporal
    attention every position has its own, and tokens stay where they are.

    Mask and bias broadcast against the logits `[B, M, Q, S]`, or have the heads of one place. `block_mask` hides keys
    next to the mask, the same for all sequences and heads.
    """
    block_mask = None if block_mask is not None and block_mask.everything else block_mask
    plan = _plan(q.shape, k.shape[1], places, block_mask)
    missing = plan.counts[2] * plan.queries - q.shape[1]
    if missing:  # rows of queries added until tiles are full
        q, queries = jnp.pad(q, ((0, 0), (0, missing), (0, 0), (0, 0))), q.shape[1]
        mask, bias = (x if x is None or x.shape[2] == 1 else jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)))
                      for x in (mask, bias))
        return _attend(plan, q, k, v, mask, bias)[0][:, :queries]
    return _attend(plan, q, k, v, mask, bias)[0]


_Group = tuple["Array | int", "Array | int"]  # the number of some sequences, and that of some of their heads


@dataclasses.dataclass(frozen=True)
class _Run:
    """Tiles from `first` to before `last`. Each sees keys in pieces of the same `lengths`, `starts` has where they
    begin for every tile; with holes if `masked`."""

    first: int
    last: int
    starts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    masked: bool

    @property
    def stops(self) -> tuple[tuple[int, ...], ...]:
        """Where the pieces end."""
        return tuple(tuple(map(sum, zip(row, self.lengths, strict=True))) for row in self.starts)

    def pieces(self, tile: Array | int) -> list[tuple[Array | int, int]]:
        """Start and length of the pieces of a tile; numbers where all tiles have the same."""
        columns = zip(*self.starts, strict=True)
        starts = [c[0] if len(set(c)) == 1 else jnp.asarray(c, jnp.int32)[tile - self.first] for c in columns]
        return list(zip(starts, self.lengths, strict=True))

    def keys(self, x: Array, tile: Array | int, axis: int = -2) -> Array:
        """The seen keys of a tile, of an array that has keys along an axis."""
        parts = [lax.dynamic_slice_in_dim(x, start, length, axis) for start, length in self.pieces(tile)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)

    def add(self, x: Array, part: Array, tile: Array | int, axis: int = -2) -> Array:
        """`x` with `part` added to the seen keys of a tile."""
        at = 0
        for start, length in self.pieces(tile):
            piece = lax.slice_in_dim(part, at, at + length, axis=axis)
            piece = piece + lax.dynamic_slice_in_dim(x, start, length, axis)
            x, at = lax.dynamic_update_slice_in_dim(x, piece, start, axis), at + length
        return x

    def columns(self, tile: Array | int) -> Array:
        """The numbers of the seen keys of a tile."""
        return jnp.concatenate([start + jnp.arange(length) for start, length in self.pieces(tile)])


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Sizes of a tile, how many tiles there are of sequences, of heads and of queries, what the latter see, and how
    many the body of a loop holds."""

    batch: int
    heads: int
    queries: int
    counts: tuple[int, int, int]
    runs: tuple[_Run, ...]
    block_mask: AnyMask | None = None
    abreast: int = 1

    def start(self, group: _Group, tile: Array | int) -> tuple[Array | int, Array | int, Array | int]:
        """The first sequence, head and query of a tile."""
        return group[0] * self.batch, group[1] * self.heads, tile * self.queries

    def rows(self, x: Float[Array, "B N M D"], group: _Group, tile: Array | int | None, order: str = "bmnd") -> Array:
        """The tokens of a tile, `[b, m, n, D]` or in another order; all tokens where no tile is given."""
        batch, head, row = self.start(group, 0 if tile is None else tile)
        sizes = (self.batch, x.shape[1] if tile is None else self.queries, self.heads, x.shape[3])
        part = lax.dynamic_slice(x, (batch, row, head, 0), sizes)
        return jnp.transpose(part, ["bnmd".index(axis) for axis in order])

    def write(self, x: Float[Array, "B N M D"], part: Array, group: _Group, tile: Array | int | None,
              order: str = "bmnd") -> Float[Array, "B N M D"]:
        """The inverse of `rows`."""
        batch, head, row = self.start(group, 0 if tile is None else tile)
        part = jnp.transpose(part, [order.index(axis) for axis in "bnmd"])
        return lax.dynamic_update_slice(x, part, (batch, row, head, 0))

    def place(self, shape: tuple[int, ...], group: _Group, tile: Array | int) -> tuple[Array | int, ...]:
        """Where the part of a mask or bias `[B, M, Q, S]` for a tile begins, with all keys. Dimensions of 1 hold for
        all, and heads of one place for every place."""
        batch, head, row = self.start(group, tile)
        head = 0 if self.heads > shape[1] else _divmod(head, shape[1])[1]
        return tuple(start if size > 1 else 0 for start, size in zip((batch, head, row, 0), shape, strict=True))

    def part(self, x: Array, group: _Group, tile: Array | int) -> Array:
        """The part of a mask or bias for a tile."""
        sizes = (self.batch, self.heads, self.queries, x.shape[3])
        sizes = tuple(min(size, whole) for size, whole in zip(sizes, x.shape, strict=True))
        return lax.dynamic_slice(x, self.place(x.shape, group, tile), sizes)

    def groups(self, body, carry):
        """`body(carry, groups)` for all groups of sequences and heads, some at once."""
        samples, heads, _ = self.counts
        together = _together(samples * heads, heads, self.abreast)

        def step(carry, i: Array | int, number: int):
            """Where groups are, in few steps: all tiles wait for a step that they share."""
            if samples == 1 or heads == 1:
                numbers = [i * together + n for n in range(number)]
                return body(carry, [(0, n) if samples == 1 else (n, 0) for n in numbers])
            if together % heads == 0:
                return body(carry, [(i * (together // heads) + n // heads, n % heads) for n in range(number)])
            if heads % together == 0:
                sample, part = _divmod(i, heads // together)
                return body(carry, [(sample, part * together + n) for n in range(number)])
            return body(carry, [_divmod(i * together + n, heads) for n in range(number)])

        return _loop(step, samples * heads, together, carry)

    def tiles(self, groups: int, body, carry):
        """`body(run, carry, tiles)` for all tiles of queries of so many groups, some at once."""
        for run in self.runs:
            together = _together(run.last - run.first, 1, -(-self.abreast // groups))

            def step(carry, i: Array | int, number: int, run: _Run = run, together: int = together):
                return body(run, carry, [run.first + i * together + n for n in range(number)])

            carry = _loop(step, run.last - run.first, together, carry)
        return carry


def _plan(shape: tuple[int, int, int, int], keys: int, places: int, block_mask: AnyMask | None) -> _Plan:
    """Tiles of queries `[B, Q, M, D]` with at most `TILE` logits or features: first all queries, then more heads, then
    more places, then more sequences."""
    batch, queries, heads, features = shape
    seen = keys if block_mask is None else int(block_mask.frame_table.sum(axis=1).max()) * block_mask.run[1]
    width = max(seen, features, 1)
    many_keys, alone = width >= QUERIES // 4, threads() == 1
    size = TILE // (1 if many_keys else 2) // (2 if alone else 1)
    most = min(QUERIES if many_keys else QUERIES // 4, max(2 * size // width, LEAST // 2 if alone else LEAST))
    if block_mask is not None and block_mask.run[0] > 1:  # tiles that end where frames do need no mask
        run = block_mask.run[0]
        rows = -(-run // -(-run // most))
        rows *= max(FEWEST // rows, 1) if rows == run else 1
    else:
        rows = -(-queries // -(-queries // most))
    many, most, of_place = 1, size // (rows * width), heads // places
    for count in (of_place, places):
        many *= _divisor(count, most // many) if many in (1, of_place) else 1
    samples = _divisor(batch, most // many) if many == heads else 1
    parts = -(-queries // rows)
    runs = _runs(block_mask, parts, rows, keys)
    abreast = ABREAST if width < WIDE and len(runs) <= ABREAST and not alone else 1
    return _Plan(samples, many, rows, (batch // samples, heads // many, parts), runs, block_mask, abreast)


def _runs(block_mask: AnyMask | None, tiles: int, rows: int, keys: int) -> tuple[_Run, ...]:
    """Runs of tiles whose keys are in pieces of the same lengths; neighbours are joined while there are too many."""
    if block_mask is None:
        return (_Run(0, tiles, ((0,),) * tiles, (keys,), False),)
    width = math.gcd(block_mask.run[1], keys)
    runs = [_pieces(row, i, width) for i, row in enumerate(block_mask.blocks(rows, width))]
    limit = False  # first those that see the same
    while True:
        joined = [runs[0]]
        for run in runs[1:]:
            before = joined[-1]
            if (run.lengths, run.masked) == (before.lengths, before.masked):
                joined[-1] = dataclasses.replace(before, last=run.last, starts=before.starts + run.starts)
            elif limit and before.last - before.first == run.last - run.first:
                start = min(itertools.chain(*before.starts, *run.starts))
                stop = max(itertools.chain(*before.stops, *run.stops))
                count = run.last - before.first
                joined[-1] = _Run(before.first, run.last, ((start,),) * count, (stop - start,), True)
            else:
                joined.append(run)
        if len(joined) <= RUNS or (limit and len(joined) == len(runs)):
            return tuple(joined)
        runs, limit = joined, True


def _pieces(row: np.ndarray, tile: int, width: int) -> _Run:
    """The run of one tile, from what its blocks of keys hold."""
    seen = np.concatenate([[False], row != EMPTY, [False]])
    edges = np.flatnonzero(seen[1:] != seen[:-1]).reshape(-1, 2)  # first block of every piece, and the one after it
    if not len(edges):
        edges = np.array([[0, 1]])
    if len(edges) > PIECES:
        edges = np.array([[edges[0, 0], edges[-1, 1]]])
    # Rows past the end are padding, which a block map takes for something partly seen.
    masked = any((row[first:last] != FULL).any() for first, last in edges)
    starts, lengths = edges[:, 0] * width, (edges[:, 1] - edges[:, 0]) * width
    return _Run(tile, tile + 1, (tuple(starts.tolist()),), tuple(lengths.tolist()), masked)


def _together(count: int, row: int, wanted: int) -> int:
    """How many of `count` things, in rows of so many, a body holds: about `wanted`, preferably whole rows or a part of
    one, and so that all bodies are alike."""
    few = min(count, wanted)
    fitting = [n for n in range(few, wanted * 3 // 2 + 1) if count % n == 0]
    return next((n for n in fitting if n % row == 0 or row % n == 0), min([*fitting, few]))


def _loop(body, count: int, together: int, carry):
    """`body(carry, i, number)` for the things from `i * together` on, `number` of them, until all of `count` are done.

    XLA shares what is ready in one body among threads, but computes one pass of a loop after the other.
    """
    whole, rest = divmod(count, together)
    if whole > 1:
        carry = lax.fori_loop(0, whole, lambda i, carry: body(carry, i, together), carry)
    elif whole:
        carry = body(carry, 0, together)
    return body(carry, whole, rest) if rest else carry


def _divmod(number: Array | int, divisor: int) -> tuple[Array | int, Array | int]:
    """Quotient and remainder of a number that is not negative."""
    if isinstance(number, int):
        return divmod(number, divisor)
    return lax.div(number, jnp.int32(divisor)), lax.rem(number, jnp.int32(divisor))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`; 1 at least."""
    return next(d for d in range(max(min(number, most), 1), 0, -1) if number % d == 0)


def _logits(plan: _Plan, run: _Run, q, k, mask, bias, group, tile, turned: bool = False) -> Float[Array, "_ _ _ _"]:
    """Masked float32 logits of a tile, `[b, m, Q, S]` or, turned, `[b, m, S, Q]`."""
    logits = _product("bmsd,bmqd->bmsq" if turned else "bmqd,bmsd->bmqs", *((k, q) if turned else (q, k)))
    mask, bias = (None if x is None else _seen(plan, run, x, group, tile) for x in (mask, bias))
    if run.masked:
        rows, columns = tile * plan.queries + jnp.arange(plan.queries), run.columns(tile)
        seen = plan.block_mask.sees(rows[:, None], columns[None, :])
        mask = seen[None, None] if mask is None else mask & seen
    if turned:
        mask, bias = (None if x is None else jnp.swapaxes(x, 2, 3) for x in (mask, bias))
    if bias is not None:
        logits = logits + bias
    return logits if mask is None else jnp.where(mask, logits, MASKED)


def _seen(plan: _Plan, run: _Run, x: Array, group: _Group, tile: Array | int) -> Array:
    """The part of a mask or bias for a tile, with the keys that it sees."""
    part = plan.part(x, group, tile)
    part = part if part.shape[1] in (1, plan.heads) else jnp.tile(part, (1, plan.heads // part.shape[1], 1, 1))
    return part if part.shape[-1] == 1 else run.keys(part, tile, -1)


def _product(how: str, a: Array, b: Array) -> Array:
    """A product of matrices in float32."""
    return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q, k, v, mask, bias):
    """Output `[B, Q, M, D]` and logsumexp `[B, M, Q, 1]`, both float32."""
    scale = q.shape[-1] ** -0.5

    def tile(run, n, i, k_n, v_n):
        logits = _logits(plan, run, plan.rows(q, n, i) * scale, run.keys(k_n, i), mask, bias, n, i)
        top = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = weights.sum(axis=-1, keepdims=True)
        return _product("bmqs,bmsd->bmqd", weights.astype(v.dtype), run.keys(v_n, i)) / total, top + jnp.log(total)

    def group(carry, groups):
        seen = [(n, plan.rows(k, n, None), plan.rows(v, n, None)) for n in groups]

        def step(run, carry, tiles):
            out, lse = carry
            for i, (n, *keys) in itertools.product(tiles, seen):
                part, lse_i = tile(run, n, i, *keys)
                out = plan.write(out, part, n, i)
                lse = lax.dynamic_update_slice(lse, lse_i, plan.place(lse.shape, n, i))
            return out, lse

        return plan.tiles(len(groups), step, carry)

    lse = jnp.zeros((q.shape[0], q.shape[2], q.shape[1], 1), jnp.float32)
    return plan.groups(group, (_unset(q, 0), lse))


def _unset(x: Array, number: int) -> Array:
    """A float32 array of the shape of `x` that tiles will fill. XLA would make one of a number and copy it."""
    return jnp.full(x.shape, number, jnp.float32)


def _forward(plan, q, k, v, mask, bias):
    out, lse = _attend(plan, q, k, v, mask, bias)
    return (out, lse), (q, k, v, mask, bias, lse)


def _backward(plan, saved, cotangents):
    q, k, v, mask, bias, lse = saved
    d_out, scale = cotangents[0], q.shape[-1] ** -0.5

    def tile(run, n, i, k_n, v_n, k_turned):
        """Gradients of queries, keys, values and logits.

        Weights and gradients of logits are `[b, m, S, q]` here: products with the keys in front need no copies of them
        in another order.
        """
        q_i, d_out_i = plan.rows(q, n, i) * scale, plan.rows(d_out, n, i)
        lse_i, d_out_i = jnp.swapaxes(plan.part(lse, n, i), 2, 3), d_out_i.astype(v.dtype)
        weights = jnp.exp(_logits(plan, run, q_i, run.keys(k_n, i), mask, bias, n, i, turned=True) - lse_i)
        d_weights = _product("bmsd,bmqd->bmsq", run.keys(v_n, i), d_out_i)
        # As a product of matrices: XLA is ten times slower with a sum of products whose first dimension is 1.
        delta = _product("bmsq,bmsq->bmq", weights, d_weights)[:, :, None]
        exact = weights * (d_weights - delta)
        weights, d_logits = weights.astype(v.dtype), exact.astype(k.dtype)
        dk, dv = _product("bmsq,bmqd->bmsd", d_logits, q_i), _product("bmsq,bmqd->bmsd", weights, d_out_i)
        if sum(run.lengths) <= q.shape[-1] * SHORT:
            dq = _product("bmqs,bmsd->bmqd", jnp.swapaxes(d_logits, 2, 3), run.keys(k_n, i))
        else:
            dq = jnp.swapaxes(_product("bmds,bmsq->bmdq", run.keys(k_turned, i, -1), d_logits), 2, 3)
        return dq * scale, dk, dv, jnp.swapaxes(exact, 2, 3)

    def group(carry, groups):
        seen = [(n, plan.rows(k, n, None), plan.rows(v, n, None), plan.rows(k, n, None, "bmdn")) for n in groups]

        def step(run, carry, tiles):
            dq, d_bias, *sums = carry  # the gradients of keys and of values of each group
            for i, (lane, (n, *keys)) in itertools.product(tiles, enumerate(seen)):
                dq_i, dk_i, dv_i, d_logits = tile(run, n, i, *keys)
                dq, (dk_n, dv_n) = plan.write(dq, dq_i, n, i), sums[lane]
                sums[lane] = run.add(dk_n, dk_i, i), run.add(dv_n, dv_i, i)
                d_bias = None if d_bias is None else _add(plan, run, d_bias, d_logits, n, i)
            return dq, d_bias, *sums

        dq, dk, dv, d_bias = carry
        zeros = [(jnp.zeros(k_n.shape, jnp.float32),) * 2 for _, k_n, *_ in seen]
        dq, d_bias, *sums = plan.tiles(len(groups), step, (dq, d_bias, *zeros))
        for n, (dk_n, dv_n) in zip(groups, sums, strict=True):
            dk, dv = plan.write(dk, dk_n, n, None), plan.write(dv, dv_n, n, None)
        return dq, dk, dv, d_bias

    start = [_unset(x, number) for number, x in enumerate((q, k, v), 1)]
    d_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    *gradients, d_bias = plan.groups(group, (*start, d_bias))
    dq, dk, dv = (d.astype(x.dtype) for d, x in zip(gradients, (q, k, v), strict=True))
    return dq, dk, dv, None, None if bias is None else d_bias.astype(bias.dtype)


def _add(plan: _Plan, run: _Run, d_bias: Array, d_logits: Float[Array, "_ _ Q S"], group, tile) -> Array:
    """The gradient of the bias with that of a tile."""
    part = plan.part(d_bias, group, tile)
    d_logits = d_logits.reshape(d_logits.shape[0], -1, part.shape[1], *d_logits.shape[2:]).sum(axis=1)
    d_logits = d_logits.sum(axis=[i for i, size in enumerate(d_bias.shape) if size == 1], keepdims=True)
    part = part + d_logits if d_bias.shape[3] == 1 else run.add(part, d_logits, tile, -1)
    return lax.dynamic_update_slice(d_bias, part, plan.place(d_bias.shape, group, tile))


_attend.defvjp(_forward, _backward)
