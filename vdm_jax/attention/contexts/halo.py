"""Halo exchange: every device gets just the frames its own frames see, the first ones and those around them.

For patterns that see few frames the bytes per device do not grow with the clip: frames before and after come from the
neighbours by collective permutes, the first frames by a sum in which only their owners take part. Spatial attention
exchanges nothing.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.block_mask import ExtraKeys, SequenceLayout, SumMask
from vdm_jax.attention.contexts.shard_mask import Ids, ShardMask, attend_shard, make_shard_mask
from vdm_jax.attention.contexts.sharded import AXIS, Call
from vdm_jax.attention.kernels.gather import gather_frames, slots_mask
from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.attention.products import VisibleFrames


def attention(call: Call, q, k, v, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None):
    """Attention of a device's frames `[B, f, H, W, K, D]` over the frames they see."""
    del bias  # the table lets none through
    device = lax.axis_index(AXIS)
    if not call.own or call.layout.pattern.layout == "frames":
        mine = None if frame_valid is None else lax.dynamic_slice_in_dim(frame_valid, device * call.frames, call.frames,
                                                                         axis=1)
        return call.alone(q, k, v, frame_valid=mine, extra_keys=extra_keys)
    halo = find_halo(call.layout, call.devices)
    k, v = halo.collect(k), halo.collect(v)
    pairs = [(call.ids(d), halo.ids(d, np)) for d in range(call.devices)]
    part = make_shard_mask(call.layout, (call.frames, len(pairs[0][1])), pairs)
    ids = call.ids(device), halo.ids(device, jnp)
    valid = None if frame_valid is None else frame_valid[:, jnp.maximum(ids[1], 0)]
    function = _gathered if call.kernel == "gather" else functools.partial(attend_shard, call.kernel)
    return function(call.local, part, ids, q, k, v, key_valid=valid, extra_keys=extra_keys)


@dataclasses.dataclass(frozen=True)
class Halo:
    """What a device holds, in this order: first frames of the clip, frames before its own, its own, frames after."""

    first: int
    before: int
    after: int
    frames: int  # own ones
    devices: int

    def ids(self, device, xp) -> Array:
        """Numbers in the clip of the frames a device holds, -1 for what is not there or there twice."""
        number = device * self.frames + np.arange(-self.before, self.frames + self.after)
        inside = (number >= self.first) & (number < self.frames * self.devices)
        number = xp.where(inside, number, -1)
        return xp.concatenate([xp.arange(self.first, dtype=number.dtype), number]) if self.first else number

    def collect(self, x: Float[Array, "B F H W K D"]) -> Float[Array, "B G H W K D"]:
        """A device's frames with their halo; places without a frame hold zeros."""
        before = [self._from_device(x, -hop, count) for hop, count in self._hops(self.before)]
        after = [self._from_device(x, hop, count) for hop, count in self._hops(self.after)]
        first = [lax.psum(jnp.where(lax.axis_index(AXIS) == owner, x[:, :count], 0), AXIS)
                 for owner, count in enumerate(_runs_of(self.frames, self.first))]
        return jnp.concatenate([*first, *reversed(before), x, *after], axis=1)

    def _hops(self, reach: int) -> list[tuple[int, int]]:
        """How many frames to get from the devices 1, 2, ... away."""
        return list(enumerate(_runs_of(self.frames, reach), 1))

    def _from_device(self, x: Array, hop: int, count: int) -> Array:
        """The nearest `count` frames of the device `hop` further on."""
        sources = [(d + hop, d) for d in range(self.devices) if 0 <= d + hop < self.devices]
        return lax.ppermute(x[:, -count:] if hop < 0 else x[:, :count], AXIS, sources)


def _runs_of(size: int, total: int) -> list[int]:
    """A number of frames as those of one device after the other, which have `size` each."""
    return [min(size, total - start) for start in range(0, total, size)]


@functools.lru_cache(maxsize=256)  # asked for in every call that is traced
def find_halo(layout: SequenceLayout, devices: int) -> Halo:
    """The smallest halo with everything that some frame of a clip over so many devices sees: of the clip's first frames
    so many are handed out apart that a device holds the fewest frames."""
    total = layout.shape[0]
    frames = total // devices
    query, key = np.nonzero(layout.frame_table)
    start = query // frames * frames
    furthest = np.zeros(total + 1, int)  # that a device lies behind each frame that it needs
    np.maximum.at(furthest, key, start - key)
    before = np.maximum.accumulate(furthest[::-1])[::-1]  # from which number of first frames on: of those after them
    held = np.arange(total) + before[:total]
    first = int(furthest[0] > before[1])
    if held.min() < first + before[first]:
        first = int(held.argmin())
    ahead = key - (start + frames - 1)
    return Halo(first=first, before=int(before[first]), after=int(ahead.max(initial=0)), frames=frames, devices=devices)


def _gathered(
    layout: SequenceLayout, part: ShardMask | SumMask, ids: Ids, q, k, v, *, key_valid: Bool[Array, "B G"] | None,
    extra_keys: ExtraKeys | None,
) -> Float[Array, "B F H W K D"]:
    """Dense attention of every frame over those of the held frames that it may see.

    Which places these are is the same on all devices; which of them hold a frame is not.
    """
    positions = layout.pattern.layout == "positions"
    places, tokens = (layout.tokens, 1) if positions else (1, layout.tokens)
    q, k, v = (rearrange(a, "b t h w k d -> b t (h w) k d") for a in (q, k, v))
    q, k, v = (rearrange(a, "b t (p n) k d -> b t p n k d", p=places) for a in (q, k, v))
    table = part.frame_table
    most = max(int(table.sum(axis=1).max()), 1)
    index = np.argsort(~table, axis=1, kind="stable")[:, :most]
    place, shown = np.arange(tokens), []
    for one in part.parts:
        seen = jnp.take_along_axis(one.seen(ids), jnp.asarray(index), axis=1)[None]
        seen = seen if key_valid is None else seen & key_valid[:, index]
        if one.within is None:
            shown.append(jnp.repeat(seen, tokens, axis=2)[:, :, None, None, None, :])  # [B, f, P, K, n, M * n]
        else:
            shown.append(slots_mask(seen, np.asarray(one.within.position_visible(place[:, None], place[None, :],
                                                                                 one.size))))
    mask = functools.reduce(jnp.logical_or, shown)
    frames = VisibleFrames(index, None)
    sets = [Keys(gather_frames(k, frames), gather_frames(v, frames), mask)]
    if extra_keys is not None:
        valid = None if extra_keys.mask is None else extra_keys.mask[:, :, None, None, None, :]
        sets.append(Keys(extra_keys.k[:, :, None], extra_keys.v[:, :, None], valid))
    out = dense(q, *sets)
    return out.reshape(*out.shape[:2], *layout.shape[1:], *out.shape[4:])
