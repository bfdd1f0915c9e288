"""Space for time: from frames split over devices to positions split over devices, for attention along time, and back.

A position's frames meet on one device, so that temporal attention is computed there whole by any kernel. Each
all-to-all moves the tokens of a device once. Positions are padded to a multiple of the devices.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vdm_jax.attention.block_mask import ExtraKeys, SequenceLayout
from vdm_jax.attention.contexts.sharded import AXIS, Call
from vdm_jax.attention.kernels import KERNELS
from vdm_jax.errors import UserError


def attention(call: Call, q, k, v, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None):
    """Temporal attention of a device's frames `[B, f, H, W, K, D]`; a bias is for all positions or for its own. Raises
    `UserError` for patterns that see other positions, which are on other devices."""
    if call.layout.pattern.layout != "positions":
        raise UserError(f"attention context={call.context!r} brings the frames of a position together, and pattern "
                        f"{call.layout.pattern} sees other positions; permitted: patterns along time")
    q, k, v = (frames_to_positions(a, call.devices) for a in (q, k, v))
    layout = SequenceLayout(call.layout.pattern, q.shape[1:4], call.layout.frame_mask)
    out = KERNELS[call.kernel](q, k, v, layout, bias=bias, frame_valid=frame_valid, extra_keys=extra_keys, own=call.own)
    return positions_to_frames(out, call.layout.shape[1:])


def frames_to_positions(x: Float[Array, "B F H W K D"], devices: int) -> Float[Array, "B T P 1 K D"]:
    """The device's share of the positions, row by row, in all frames."""
    x = x.reshape(*x.shape[:2], -1, *x.shape[4:])
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % devices), (0, 0), (0, 0)))
    return lax.all_to_all(x, AXIS, split_axis=2, concat_axis=1, tiled=True)[:, :, :, None]


def positions_to_frames(x: Float[Array, "B T P 1 K D"], size: tuple[int, int]) -> Float[Array, "B F H W K D"]:
    """Back to all positions of the device's frames, of `size` (H, W)."""
    x = lax.all_to_all(x[:, :, :, 0], AXIS, split_axis=1, concat_axis=2, tiled=True)
    return x[:, :, : size[0] * size[1]].reshape(*x.shape[:2], *size, *x.shape[3:])
