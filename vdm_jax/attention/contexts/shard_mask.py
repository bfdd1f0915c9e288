"""The part of a pattern that one device computes: its own query frames against the key frames it holds.

All devices run one program, so which frames a device has is known only when the program runs: visibility is looked up
by the numbers of the frames in the clip.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from vdm_jax.attention.block_mask import PARTIAL, AnyMask, BlockMask, ExtraKeys, SequenceLayout, SumMask
from vdm_jax.attention.kernels.chunked import blockwise, merge
from vdm_jax.attention.kernels.xla import Keys, both, dense
from vdm_jax.attention.products import split
from vdm_jax.errors import UserError

Ids = tuple[Int[ArrayLike, " F"], Int[ArrayLike, " G"]]  # of query and key frames; a key frame < 0 is not there


@dataclasses.dataclass(frozen=True)
class ShardMask(BlockMask):
    """A block mask over frames whose numbers come at run time.

    `table` is what any device may need, an upper bound by which work is planned; `clip` is the frame mask of the
    `total` frames of the clip, `rule` the same as a formula where there is one.
    """

    clip: bytes = b""
    total: int = 0
    at_run_time: ClassVar[bool] = True

    def only(self, keys: Bool[np.ndarray, " T"]) -> ShardMask:
        """The part that sees some frames of the clip alone."""
        clip = np.frombuffer(self.clip, bool).reshape(self.total, self.total) & keys
        return dataclasses.replace(self, rule=None, clip=clip.tobytes())

    def frames_see(self, query, key):
        """Elementwise: whether frame `query` of the clip sees frame `key`; both integer arrays."""
        if self.rule is not None:
            return self.rule(query, key) & (key >= 0)
        table = jnp.asarray(np.frombuffer(self.clip, bool).reshape(self.total, self.total))
        return table[query, jnp.maximum(key, 0)] & (key >= 0)

    def seen(self, ids: Ids) -> Bool[ArrayLike, "F G"]:
        """Which query frame sees which key frame."""
        return self.frames_see(ids[0][:, None], ids[1][None, :])

    def sees(self, query, key, ids: Ids) -> Array:
        """Elementwise: whether query number `query` sees key number `key`; keys past the end are never seen."""
        (query_frame, query), (key_frame, key) = split(query, self.run[0]), split(key, self.run[1])
        inside = [jnp.minimum(f, n - 1) for f, n in zip((query_frame, key_frame), self.frames, strict=True)]
        visible = self.frames_see(ids[0][inside[0]], ids[1][inside[1]]) & (key_frame < self.frames[1])
        if self.within is not None:
            visible = visible & self.within.position_visible(query, key, self.size)
        return visible

    def mask(self, ids: Ids) -> Bool[Array, "Q S"]:
        """The dense mask."""
        (q_frames, k_frames), (q_run, k_run) = self.frames, self.run
        mask = self.seen(ids)[:, None, :, None]
        if self.within is not None:
            tokens = np.arange(q_run)[:, None], np.arange(k_run)[None, :]
            mask = mask & jnp.asarray(self.within.position_visible(*tokens, self.size))[None, :, None, :]
        return jnp.broadcast_to(mask, (q_frames, q_run, k_frames, k_run)).reshape(self.lengths)

    def blocks(self, block_q: int, block_k: int) -> np.ndarray:
        """Blocks that some device may need; none is known to be full for all."""
        return np.minimum(super().blocks(block_q, block_k), PARTIAL)

    def live(self, block_q: int, block_k: int, ids: Ids) -> Bool[Array, "N M"]:
        """Which blocks hold frames that see each other."""
        count = jnp.cumsum(jnp.cumsum(self.seen(ids).astype(jnp.int32), axis=0), axis=1)
        count = jnp.pad(count, ((1, 0), (1, 0)))  # visible pairs in every rectangle from the origin
        spans = []
        for length, block, run in zip(self.lengths, (block_q, block_k), self.run, strict=True):
            first = np.arange(0, length, block)
            spans += [first // run, np.minimum(first + block - 1, length - 1) // run + 1]
        a, b, c, d = spans
        return count[np.ix_(b, d)] - count[np.ix_(a, d)] - count[np.ix_(b, c)] + count[np.ix_(a, c)] > 0


def make_shard_mask(
    layout: SequenceLayout, frames: tuple[int, int], pairs: list[tuple[np.ndarray, np.ndarray]] | None = None,
) -> AnyMask:
    """The part of `layout` (a whole clip) among `frames` (of queries, of keys).

    `pairs`: numbers of query and key frames of every device, from which follows what may be needed; None: any frames.
    Where everything is visible in any case the result is a plain block mask, else a `ShardMask`, or a sum of them.
    """
    whole, total = layout.block_mask(), layout.shape[0]
    if whole.everything and (pairs is None or all((k >= 0).all() for _, k in pairs)):
        needed = np.ones(frames, bool) if pairs is None else _needed(layout.frame_table, pairs)
        rule = whole.rule if isinstance(whole, BlockMask) else None  # the formula of a part is not that of the sum
        return dataclasses.replace(whole.parts[0], frames=frames, table=needed.tobytes(), rule=rule)
    parts = []
    for part in whole.parts:
        needed = np.ones(frames, bool) if pairs is None else _needed(part.frame_table, pairs)
        parts.append(ShardMask(frames, part.run, part.tokens, needed.tobytes(), part.rule, part.within, part.size,
                               part.table, total))
    return parts[0] if len(parts) == 1 else SumMask(tuple(parts))


def only(part: ShardMask | SumMask, keys: Bool[np.ndarray, " T"]) -> AnyMask:
    """What a part shows of some frames of the clip."""
    parts = tuple(one.only(keys) for one in part.parts)
    return parts[0] if len(parts) == 1 else SumMask(parts)


def _needed(table: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Which of the frames that devices hold may see each other, bool `[query frames, key frames]`."""
    return np.any([table[np.ix_(q, np.maximum(k, 0))] & (k >= 0) for q, k in pairs], axis=0)


def asked(part: AnyMask, ids: Ids) -> Ids | None:
    """The frame numbers if the part asks for them."""
    return ids if part.at_run_time else None


def dense_mask(part: AnyMask, ids: Ids) -> Bool[Array, "Q S"] | None:
    """The mask of a part; None when everything is visible."""
    return part.mask(ids) if part.at_run_time else part.mask()


def check_kernel(kernel: str) -> None:
    """Raise `UserError` for a kernel that does not compute parts of clips."""
    if kernel not in ("xla", "chunked"):
        raise UserError(f"attention kernel={kernel!r} does not compute part of a clip; permitted: 'xla', 'chunked'")


def check_exchanged(layout: SequenceLayout, context: str) -> None:
    """Raise `UserError` for a pattern whose sequences are single frames, in a context that exchanges frames."""
    if layout.pattern.layout == "frames":
        raise UserError(f"attention context={context!r} exchanges frames, which pattern {layout.pattern} never leaves; "
                        "permitted: 'none', 'halo'")


def attend_shard(
    kernel: str,
    layout: SequenceLayout,
    part: AnyMask,
    ids: Ids,
    q: Float[Array, "B F H W K D"],
    k: Float[Array, "B G H W K D"],
    v: Float[Array, "B G H W K D"],
    *,
    bias: Float[Array, "*rest K Q S"] | None = None,
    key_valid: Bool[Array, "B G"] | None = None,
    extra_keys: ExtraKeys | None = None,
) -> Float[Array, "B F H W K D"]:
    """Attention of a device's frames over the frames it holds, by kernel `xla` or `chunked`.

    `view` is that of the device's own frames and serves for layouts only; `extra_keys` has one group or one per own
    frame.
    """
    rows, keys, values, valid = layout.rows(q), layout.rows(k), layout.rows(v), layout.key_valid(key_valid)
    outside = None if extra_keys is None else layout.extra_rows(extra_keys)
    if kernel == "chunked":
        parts = [blockwise(rows, keys, values, part, bias=bias, key_valid=valid, ids=asked(part, ids))]
        if outside is not None:
            keys, values, valid, block_mask = outside
            parts.append(blockwise(rows, keys, values, block_mask, key_valid=valid))
        return layout.video(merge(*parts).astype(v.dtype))
    check_kernel(kernel)
    sets = [Keys(keys, values, both(dense_mask(part, ids), valid), bias)]
    if outside is not None:
        keys, values, valid, block_mask = outside
        sets.append(Keys(keys, values, both(block_mask.mask(), valid)))
    return layout.video(dense(rows, *sets))
