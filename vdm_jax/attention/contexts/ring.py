"""Ring: keys and values go round the devices while each keeps its queries; memory is that of a device's own tokens.

The scheme of Liu et al. 2023 (2310.01889): partial results are merged by their logsumexp, and the backward pass sends
keys and values round once more together with their gradients, recomputing the weights from the saved logsumexp. What a
pattern rules out is skipped: a distance that no device needs is passed over for all, a shard that one device does not
see costs that device nothing. A first frame that far devices see (sparse-causal attention) does not take its shard all
the way round: it is handed to all at once and joined like outside tokens.

Under a causal pattern the device with the last frames has the most work and the others wait. `zigzag` splits the clip
into 2 n runs of frames and gives device i the runs i and 2 n - 1 - i, so that all have the same work at every step;
frames are exchanged on the way in and out.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.block_mask import AnyMask, ExtraKeys, SequenceLayout
from vdm_jax.attention.contexts.shard_mask import (
    asked,
    check_exchanged,
    check_kernel,
    dense_mask,
    make_shard_mask,
    only,
)
from vdm_jax.attention.contexts.sharded import AXIS, Call
from vdm_jax.attention.kernels.chunked import blockwise, blockwise_gradients, merge
from vdm_jax.attention.kernels.xla import MASKED
from vdm_jax.errors import UserError

Parts = tuple[Array, ...]  # a device's rows: one run of frames, or two under zigzag


def attention(call: Call, q, k, v, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None,
              zigzag: bool = False):
    """Attention of a device's frames `[B, f, H, W, K, D]` over all frames."""
    del bias  # the table lets none through
    if not call.own:
        return call.alone(q, k, v, extra_keys=extra_keys)
    check_exchanged(call.layout, call.context)
    check_kernel(call.kernel)
    return around(Ring(call.kernel, call.layout, call.devices, 1, zigzag), q, k, v, frame_valid, extra_keys)


def check_halves(call: Call, heads: int) -> None:
    """Raises `UserError` unless every device has an even number of frames."""
    del heads
    if call.frames % 2:
        raise UserError(f"attention context={call.context!r} cannot halve the {call.frames} frames of each device; "
                        f"permitted: multiples of {2 * call.devices} frames")


@dataclasses.dataclass(frozen=True)
class Ring:
    """Members of a ring along the context axis, `stride` devices apart, and what they compute."""

    kernel: str
    layout: SequenceLayout  # of the whole clip
    members: int
    stride: int
    zigzag: bool
    apart: bool = False  # the first frame of the clip is no key here: all devices have it already

    @property
    def table(self) -> np.ndarray:
        """Which frame of the clip sees which on the way round, bool `[T, T]`."""
        return self.layout.frame_table & ~(self.apart & (np.arange(self.layout.shape[0]) == 0))

    @property
    def local(self) -> SequenceLayout:
        """The view of one run of frames, for layouts only."""
        frames = self.layout.shape[0] // (self.members * (2 if self.zigzag else 1))
        return SequenceLayout(self.layout.pattern, (frames, *self.layout.shape[1:]))

    @property
    def block_mask(self) -> AnyMask:
        """What a run of queries may see of a run of keys."""
        part = make_shard_mask(self.layout, (self.local.shape[0],) * 2)
        return only(part, np.arange(self.layout.shape[0]) > 0) if self.apart else part

    def member(self) -> Array:
        """The member that this device is."""
        return lax.axis_index(AXIS) // self.stride

    def ids(self, member: Any) -> list[Any]:
        """Numbers in the clip of the frames of each run that a member holds; numpy or jax."""
        run, frames = member, self.local.shape[0]
        runs = [run]
        if self.zigzag:  # runs with an even number come first
            far, odd = 2 * self.members - 1 - member, member % 2
            runs = [member + (far - member) * odd, far + (member - far) * odd]
        return [run * frames + np.arange(frames) for run in runs]

    def send(self, x: Any, target: Callable[[int], int]) -> Any:
        """Arrays from each member to the member `target` of it."""
        pairs = [(m * self.stride + lane, target(m) * self.stride + lane)
                 for m in range(self.members) for lane in range(self.stride)]
        return jax.tree.map(lambda a: lax.ppermute(a, AXIS, pairs), x)

    def rotate(self, x: Any, hops: int) -> Any:
        """Arrays to the member `hops` further on."""
        return self.send(x, lambda m: (m + hops) % self.members) if hops % self.members else x

    def distances(self) -> list[int]:
        """How far keys must travel so that every query meets what it sees; distances that no member needs are left
        out."""
        table = self.table
        ids = [np.concatenate(self.ids(m)) for m in range(self.members)]
        return [d for d in range(self.members)
                if any(table[np.ix_(ids[m], ids[(m - d) % self.members])].any() for m in range(self.members))]

    def with_first_apart(self) -> Ring:
        """The ring with the first frame apart where that saves more frames on the way than handing it out costs."""
        other = dataclasses.replace(self, apart=True)
        saved = len(self.distances()) - len(other.distances() or [0])
        frames = self.layout.shape[0] // self.members  # of a device; a sum over all devices moves about two
        # Under Ulysses the devices of the axis hold different heads, which a sum over the axis would mix.
        return other if self.stride == 1 and saved * frames > 2 else self

    def visit(self, step: Callable[[Any, Any, Any], tuple[Any, Any]], result: Any, moving: Any) -> tuple[Any, Any]:
        """`step(member, result, moving)` for the keys of every member in turn; `moving` comes home in the end.

        Equal hops run in one loop, so that the program does not grow with the devices.
        """
        me, stops = self.member(), self.distances() or [0]
        moving, distance = self.rotate(moving, stops[0]), jnp.int32(stops[0])

        def leg(hops, _, state):
            result, moving, distance = state
            result, moving = step((me - distance) % self.members, result, moving)
            return result, self.rotate(moving, hops), distance + hops

        state = result, moving, distance
        for hops, equal in itertools.groupby(np.diff(stops).tolist()):
            state = lax.fori_loop(0, len(list(equal)), functools.partial(leg, hops), state)
        result, moving, distance = state
        result, moving = step((me - distance) % self.members, result, moving)
        return result, self.rotate(moving, self.members - stops[-1])

    def valid(self, frame_valid: Bool[Array, "B T"] | None, ids: Array) -> Bool[Array, "N S"] | None:
        """Validity of the keys of some frames."""
        return None if frame_valid is None else self.local.key_valid(frame_valid[:, ids])


def around(
    ring: Ring, q: Float[Array, "B F H W K D"], k: Array, v: Array, frame_valid: Bool[Array, "B T"] | None,
    extra_keys: ExtraKeys | None,
) -> Float[Array, "B F H W K D"]:
    """Attention of a member's frames over all frames, and over outside tokens."""
    ring = ring.with_first_apart()
    exchange = _to_zigzag if ring.zigzag else lambda ring, x: (x,)
    parts = [tuple(ring.local.rows(run) for run in exchange(ring, x)) for x in (q, k, v)]
    outs, lses = _around(ring, *parts, frame_valid)
    runs = [ring.local.video(out) for out in outs]
    out = _from_zigzag(ring, runs) if ring.zigzag else runs[0]
    if extra_keys is None and not ring.apart:
        return out.astype(v.dtype)
    # Queries may have been exchanged, the first frame and outside tokens not: these join where the queries came from.
    device = SequenceLayout(ring.layout.pattern, q.shape[1:4])
    lse = [jnp.swapaxes(a, 1, 2)[..., None] for a in lses]
    runs = [ring.local.video(a) for a in lse]
    lse = device.rows(_from_zigzag(ring, runs) if ring.zigzag else runs[0])
    sets = [(device.rows(out), jnp.swapaxes(lse[..., 0], 1, 2))]
    if ring.apart:
        sets.append(_over_first_frame(ring, device, q, k, v, frame_valid))
    if extra_keys is not None:
        keys, values, valid, block_mask = device.extra_rows(extra_keys)
        sets.append(blockwise(device.rows(q), keys, values, block_mask, key_valid=valid))
    return device.video(merge(*sets)).astype(v.dtype)


def _over_first_frame(ring: Ring, device: SequenceLayout, q, k, v, frame_valid) -> tuple[Array, Array]:
    """Output and logsumexp of a device's frames, in order, over the first frame of the clip."""
    member, frames = ring.member(), device.shape[0]
    key, value = (device.rows(lax.psum(jnp.where(member == 0, a[:, :1], 0), AXIS)) for a in (k, v))
    part = only(make_shard_mask(ring.layout, (frames, 1)), np.arange(ring.layout.shape[0]) == 0)
    ids = member * frames + np.arange(frames), jnp.zeros(1, jnp.int32)
    valid = None if frame_valid is None else device.key_valid(frame_valid[:, :1])
    return blockwise(device.rows(q), key, value, part, key_valid=valid, ids=ids)


# ------------------------------------------------------------------------------------------------ round the ring


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _around(ring: Ring, q: Parts, k: Parts, v: Parts, frame_valid) -> tuple[Parts, Parts]:
    """Output `[C, S, K, D]` and logsumexp `[C, K, S]` of every run of queries, float32."""
    q_ids = ring.ids(ring.member())

    def step(member, results, moving):
        results = list(results)
        for (i, mine), (key, value, ids) in itertools.product(enumerate(q_ids), zip(*moving, ring.ids(member),
                                                                                    strict=True)):
            def join(result, q=q[i], key=key, value=value, pair=(mine, ids)):
                return _join(result, _forward_part(ring, q, key, value, pair, ring.valid(frame_valid, pair[1])))

            results[i] = _if_seen(ring, (mine, ids), join, results[i])
        return tuple(results), moving

    start = tuple((a.astype(jnp.float32) * 0, jnp.swapaxes(a[..., 0], 1, 2).astype(jnp.float32) * 0 + MASKED)
                  for a in q)
    results, _ = ring.visit(step, start, (k, v))
    return tuple(out for out, _ in results), tuple(lse for _, lse in results)


def _forward(ring, q, k, v, frame_valid):
    outs, lses = _around(ring, q, k, v, frame_valid)
    return (outs, lses), (q, k, v, frame_valid, outs, lses)


def _backward(ring, saved, cotangents):
    q, k, v, frame_valid, outs, lses = saved
    q_ids = ring.ids(ring.member())
    # The cotangent of the logsumexp enters through the weights alone, like the sum of weighted cotangents.
    deltas = [jnp.swapaxes((d * out).sum(axis=-1), 1, 2) - d_lse
              for d, out, d_lse in zip(cotangents[0], outs, cotangents[1], strict=True)]

    def step(member, dq, moving):
        dq, (keys, values, dk, dv) = list(dq), (list(a) for a in moving)
        for (i, mine), (j, ids) in itertools.product(enumerate(q_ids), enumerate(ring.ids(member))):
            def add(sums, i=i, j=j, pair=(mine, ids)):
                new = _gradient_part(ring, q[i], keys[j], values[j], pair, ring.valid(frame_valid, pair[1]), lses[i],
                                     deltas[i], cotangents[0][i])
                return tuple(a + b for a, b in zip(sums, new, strict=True))

            dq[i], dk[j], dv[j] = _if_seen(ring, (mine, ids), add, (dq[i], dk[j], dv[j]))
        return tuple(dq), tuple(tuple(a) for a in (keys, values, dk, dv))

    zeros = [tuple(a.astype(jnp.float32) * 0 for a in parts) for parts in (q, k, v)]
    dq, (_, _, dk, dv) = ring.visit(step, zeros[0], (k, v, *zeros[1:]))
    cast = (tuple(g.astype(a.dtype) for g, a in zip(gs, parts, strict=True))
            for gs, parts in zip((dq, dk, dv), (q, k, v), strict=True))
    return *cast, None


_around.defvjp(_forward, _backward)


def _if_seen(ring: Ring, ids: tuple[Array, Array], function: Callable, value: Any) -> Any:
    """`function(value)` if some query frame sees some key frame, else `value`."""
    known = asked(ring.block_mask, ids)
    return function(value) if known is None else lax.cond(ring.block_mask.seen(known).any(), function, lambda x: x,
                                                          value)


def _join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Attention over the union of two sets of keys from (output, logsumexp) of each."""
    lse = jnp.logaddexp(a[1], b[1])
    weights = (jnp.swapaxes(jnp.exp(part - lse), 1, 2)[..., None] for _, part in (a, b))
    return sum(weight * out for weight, (out, _) in zip(weights, (a, b), strict=True)), lse


# ------------------------------------------------------------------------------------------------ one shard of keys


def _forward_part(ring: Ring, q, k, v, ids, valid) -> tuple[Float[Array, "N Q K D"], Float[Array, "N K Q"]]:
    """Output and logsumexp of queries over one run of keys, float32."""
    if ring.kernel == "chunked":
        return blockwise(q, k, v, ring.block_mask, key_valid=valid, ids=asked(ring.block_mask, ids))
    logits = _logits(ring, q, k, ids, valid)
    lse = jax.nn.logsumexp(logits, axis=-1)
    weights = jnp.exp(logits - lse[..., None]).astype(v.dtype)
    return jnp.einsum("ckqs,cskd->cqkd", weights, v, preferred_element_type=jnp.float32), lse


def _gradient_part(ring: Ring, q, k, v, ids, valid, lse, delta, d_out) -> tuple[Array, Array, Array]:
    """What one run of keys adds to the gradients of q, k, v; `lse` is over all keys."""
    if ring.kernel == "chunked":
        return blockwise_gradients(q, k, v, ring.block_mask, lse=lse, delta=delta, d_out=d_out, key_valid=valid,
                                   ids=asked(ring.block_mask, ids))
    weights = jnp.exp(_logits(ring, q, k, ids, valid) - lse[..., None])
    d_out = d_out.astype(v.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_logits = weights * (product("cqkd,cskd->ckqs", d_out, v) - delta[..., None])
    scale, d_logits = q.shape[-1] ** -0.5, d_logits.astype(k.dtype)
    dk = product("ckqs,cqkd->cskd", d_logits, q * scale)
    return product("ckqs,cskd->cqkd", d_logits, k) * scale, dk, product("ckqs,cqkd->cskd", weights.astype(v.dtype),
                                                                       d_out)


def _logits(ring: Ring, q, k, ids, valid) -> Float[Array, "N K Q S"]:
    logits = jnp.einsum("cqkd,cskd->ckqs", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    mask = dense_mask(ring.block_mask, ids)
    logits = logits if mask is None else jnp.where(mask, logits, MASKED)
    return logits if valid is None else jnp.where(valid[:, None, None, :], logits, MASKED)


# ------------------------------------------------------------------------------------------------ zigzag


def _owner(ring: Ring, run: int) -> int:
    """The member that computes a run of frames under zigzag."""
    return run if run < ring.members else 2 * ring.members - 1 - run


def _to_zigzag(ring: Ring, x: Float[Array, "B F H W K D"]) -> list[Array]:
    """The two runs of frames that a member computes, the one with an even number first."""
    return [ring.send(half, lambda m, odd=odd: _owner(ring, 2 * m + odd))
            for odd, half in enumerate(jnp.split(x, 2, axis=1))]


def _from_zigzag(ring: Ring, runs: list[Float[Array, "B R H W K D"]]) -> Float[Array, "B F H W K D"]:
    """Back to frames in order."""
    home = [{_owner(ring, 2 * m + odd): m for m in range(ring.members)} for odd in range(2)]
    return jnp.concatenate([ring.send(run, home[odd].get) for odd, run in enumerate(runs)], axis=1)
