"""Ulysses inside a ring: the context axis factored into groups that exchange heads, and a ring of such groups.

As many neighbouring devices exchange heads for frames as the heads permit (the greatest common divisor of both
numbers); keys and values go round between the groups. The factored scheme of Fang & Zhao 2024 (2405.07719).
"""

from __future__ import annotations

import math

from jax import lax

from vdm_jax.attention.block_mask import ExtraKeys
from vdm_jax.attention.contexts.ring import Ring, around
from vdm_jax.attention.contexts.shard_mask import check_exchanged, check_kernel
from vdm_jax.attention.contexts.sharded import AXIS, Call
from vdm_jax.errors import UserError


def attention(call: Call, q, k, v, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None):
    """Attention of a device's frames `[B, f, H, W, K, D]` over all frames; outside tokens are whole."""
    del bias  # the table lets none through
    width = math.gcd(call.devices, q.shape[4])
    groups = [list(range(first, first + width)) for first in range(0, call.devices, width)]
    if extra_keys is not None:
        extra_keys = _share(call, width, extra_keys)
    if not call.own:
        return call.alone(q, k, v, extra_keys=extra_keys)
    check_exchanged(call.layout, call.context)
    check_kernel(call.kernel)
    q, k, v = (lax.all_to_all(a, AXIS, 4, 1, tiled=True, axis_index_groups=groups) for a in (q, k, v))
    out = around(Ring(call.kernel, call.layout, len(groups), width, False), q, k, v, frame_valid, extra_keys)
    return lax.all_to_all(out, AXIS, 1, 4, tiled=True, axis_index_groups=groups)


def check(call: Call, heads: int) -> None:
    """Raises `UserError` when no two devices can share the `heads` of a device (after tensor parallelism)."""
    if math.gcd(call.devices, heads) == 1:
        raise UserError(f"attention context='ulysses_ring' cannot share {heads} heads per device among devices of mesh "
                        f"axis {AXIS}={call.devices}; permitted: heads with a common divisor, or context='ring'")


def _share(call: Call, width: int, extra: ExtraKeys) -> ExtraKeys:
    """Outside tokens of the heads and (if they differ by frame) of the frames that this device computes."""
    device = lax.axis_index(AXIS)
    lane, group = device % width, device // width
    if not call.own:
        return ExtraKeys(*(a if a is None or a.shape[1] == 1 else
                      lax.dynamic_slice_in_dim(a, device * call.frames, call.frames, axis=1) for a in extra))
    heads, frames = extra.k.shape[3] // width, call.frames * width
    k, v = (lax.dynamic_slice_in_dim(a, lane * heads, heads, axis=3) for a in extra[:2])
    return ExtraKeys(*(a if a is None or a.shape[1] == 1 else
                  lax.dynamic_slice_in_dim(a, group * frames, frames, axis=1) for a in (k, v, extra.mask)))
