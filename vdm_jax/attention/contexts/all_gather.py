"""All-gather: every device gets the keys and values of all frames and attends with its own queries.

Exact for every pattern and simple; the gathered keys and values are what it costs, 2 S tokens per device.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from vdm_jax.attention.contexts.part import attend_part, check_exchanged, make_part
from vdm_jax.attention.contexts.spread import AXIS, Call
from vdm_jax.attention.relation import Bank


def attention(call: Call, q, k, v, *, bias=None, frame_valid=None, external: Bank | None = None):
    """Attention of a device's frames `[B, f, H, W, K, D]` over all frames; a bias has the device's own rows."""
    if not call.own:
        return call.alone(q, k, v, external=external)
    check_exchanged(call.view, call.context)
    total = call.view.shape[0]
    k, v = (lax.all_gather(a, AXIS, axis=1, tiled=True) for a in (k, v))
    everything = np.arange(total)
    pairs = [(call.ids(device), everything) for device in range(call.devices)]
    part = make_part(call.view, (call.frames, total), pairs)
    ids = call.ids(lax.axis_index(AXIS)), jnp.asarray(everything)
    return attend_part(call.kernel, call.local, part, ids, q, k, v, bias=bias, key_valid=frame_valid,
                       external=external)
