"""Ulysses: heads for frames, attention over the whole clip on every device with its share of the heads, and back.

The all-to-all of Jacobs et al. 2023 (2309.14509). The local sequences are whole, so every kernel, mask and bias works
unchanged; the number of heads per device bounds the number of devices.
"""

from __future__ import annotations

from jax import lax

from vdm_jax.attention.block_mask import ExtraKeys
from vdm_jax.attention.contexts.sharded import AXIS, Call
from vdm_jax.attention.kernels import KERNELS
from vdm_jax.errors import UserError


def attention(call: Call, q, k, v, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None):
    """Attention of a device's frames `[B, f, H, W, K, D]`; bias and outside tokens have the device's heads."""
    q, k, v = (lax.all_to_all(a, AXIS, split_axis=4, concat_axis=1, tiled=True) for a in (q, k, v))
    out = KERNELS[call.kernel](q, k, v, call.layout, bias=bias, frame_valid=frame_valid, extra_keys=extra_keys,
                               own=call.own)
    return lax.all_to_all(out, AXIS, split_axis=1, concat_axis=4, tiled=True)


def check(call: Call, heads: int) -> None:
    """Raises `UserError` unless the `heads` of a device (after tensor parallelism) divide over the context axis."""
    if heads % call.devices:
        raise UserError(f"attention context='ulysses' cannot split {heads} heads per device over mesh axis "
                        f"{AXIS}={call.devices}; permitted: multiples of {call.devices}")
