"""Attention whose sequences lie within devices: nothing is exchanged.

Spatial attention needs only the frames a device has, temporal attention only its rows, cross-attention only its own
queries. The compiler cannot see that
once frames or positions are folded into the batch, and would gather them.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.contexts.spread import AXIS, axes_of
from vdm_jax.attention.kernels import KERNELS
from vdm_jax.attention.relation import Bank, View
from vdm_jax.parallel.rules import VIDEO

# Layout of the pattern and what is split -> dimension of `[B, T, H, W, K, D]` that is split, and never looked across.
DIMENSIONS = {("frames", "frames"): 1, ("positions", "height"): 2}


def local_dimension(view: View, axis: str, devices: int, own: bool = True) -> int | None:
    """The split dimension if every device has whole sequences, else None."""
    dim = DIMENSIONS.get((view.pattern.layout, axis)) if own else VIDEO[axis]  # without own keys queries are alone
    mesh = jax.sharding.get_abstract_mesh()
    if dim is None or devices == 1 or view.shape[dim - 1] % devices or AxisType.Manual in mesh.axis_types:
        return None
    return dim


def attention(
    kernel: str, view: View, dim: int, devices: int, q: Float[Array, "B T H W K D"], k: Array | None, v: Array | None,
    *, bias: Float[Array, "*rest K Q S"] | None = None, frame_valid: Bool[Array, "B T"] | None = None,
    external: Bank | None = None, own: bool = True,
) -> Float[Array, "B T H W K D"]:
    """The kernel on every device's own frames (`dim` 1) or rows (`dim` 2)."""
    shape = tuple(size // devices if i == dim - 1 else size for i, size in enumerate(view.shape))
    part = View(view.pattern, shape, view.frame_mask if dim == 2 else None)  # a frame mask hides no frame from itself
    batch, heads = axes_of("batch", q.shape[0]), axes_of("heads", q.shape[4])
    tokens = P(batch, *(AXIS if d == dim else None for d in range(1, 4)), heads, None)
    arrays: dict[str, Any] = {"q": q, "k": k, "v": v}
    specs: dict[str, Any] = {"q": tokens, **dict.fromkeys("kv", tokens if own else None)}
    if external is not None:
        groups = AXIS if dim == 1 and external.k.shape[1] > 1 else None
        keys = P(batch, groups, None, heads, None)
        arrays["external"] = external
        specs["external"] = Bank(keys, keys, None if external.mask is None else P(batch, groups, None))
    if frame_valid is not None:
        arrays["frame_valid"], specs["frame_valid"] = frame_valid, P(batch, AXIS if dim == 1 else None)
    if bias is not None and (bias.ndim == 3 or bias.shape[0] == 1):
        arrays["bias"], specs["bias"] = bias, P(*[None] * (bias.ndim - 3), heads, None, None)
    elif bias is not None:  # one per sequence: sequences as samples and frames, or samples, rows and columns
        places = view.shape[:1] if dim == 1 else view.shape[1:]
        arrays["bias"] = bias.reshape(q.shape[0], *places, *bias.shape[1:])
        specs["bias"] = P(batch, AXIS, *[None] * (len(places) - 1), heads, None, None)

    def device(arrays: dict[str, Array]) -> Array:
        if "bias" in arrays and arrays["bias"].ndim > 4:
            arrays = arrays | {"bias": arrays["bias"].reshape(-1, *arrays["bias"].shape[-3:])}
        return KERNELS[kernel](**arrays, view=part, own=own)

    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(device, mesh=mesh, in_specs=(specs,), out_specs=tokens, check_vma=False)(arrays)
