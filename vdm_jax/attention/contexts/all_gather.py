"""All-gather: every device gets the keys and values of all frames and attends with its own queries.

Exact for every pattern and simple; the gathered keys and values are what it costs, 2 S tokens per device.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from vdm_jax.attention.block_mask import ExtraKeys
from vdm_jax.attention.contexts.shard_mask import attend_shard, check_exchanged, make_shard_mask
from vdm_jax.attention.contexts.sharded import AXIS, Call


def attention(call: Call, q, k, v, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None):
    """Attention of a device's frames `[B, f, H, W, K, D]` over all frames; a bias has the device's own rows."""
    if not call.own:
        return call.alone(q, k, v, extra_keys=extra_keys)
    check_exchanged(call.layout, call.context)
    total = call.layout.shape[0]
    k, v = (lax.all_gather(a, AXIS, axis=1, tiled=True) for a in (k, v))
    everything = np.arange(total)
    pairs = [(call.ids(device), everything) for device in range(call.devices)]
    part = make_shard_mask(call.layout, (call.frames, total), pairs)
    ids = call.ids(lax.axis_index(AXIS)), jnp.asarray(everything)
    return attend_shard(call.kernel, call.local, part, ids, q, k, v, bias=bias, key_valid=frame_valid,
                       extra_keys=extra_keys)
