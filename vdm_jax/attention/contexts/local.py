"""Attention whose sequences lie within devices: nothing is exchanged.

Spatial attention needs only the frames a device has, temporal attention only its rows, cross-attention only its own
queries. The compiler cannot see that once frames or positions are folded into the batch, and would gather them. Where
devices share clips or heads alone, it can; on CPUs each computes by itself all the same, in tiles, whose loops the
compiler could not split.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.block_mask import ExtraKeys, SequenceLayout
from vdm_jax.attention.contexts.sharded import AXIS, axes_of
from vdm_jax.attention.kernels import KERNELS
from vdm_jax.parallel.compiling import target_platform
from vdm_jax.parallel.rules import AXIS_RULES, VIDEO

# Layout of the pattern and what is split -> dimension of `[B, T, H, W, K, D]` that is split, and never looked across.
DIMENSIONS = {("frames", "frames"): 1, ("positions", "height"): 2}


def local_dimension(layout: SequenceLayout, axis: str, devices: int, own: bool = True) -> int | None:
    """The split dimension if every device has whole sequences, else None."""
    dim = DIMENSIONS.get((layout.pattern.layout, axis)) if own else VIDEO[axis]  # without own keys queries are alone
    mesh = jax.sharding.get_abstract_mesh()
    if dim is None or devices == 1 or layout.shape[dim - 1] % devices or AxisType.Manual in mesh.axis_types:
        return None
    return dim


def whole_clips(batch: int, heads: int) -> bool:
    """Whether several CPU devices share these clips and heads evenly, and none of them a clip's frames: what one has in
    part only, all would have whole, and sum the gradients of."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get(AXIS, 1) > 1 or AxisType.Manual in mesh.axis_types or target_platform() != "cpu":
        return False
    parts = [math.prod(mesh.shape.get(axis, 1) for axis in AXIS_RULES[name]) for name in ("batch", "heads")]
    return math.prod(parts) > 1 and batch % parts[0] == heads % parts[1] == 0


def attention(
    kernel: str, layout: SequenceLayout, dim: int | None, devices: int, q: Float[Array, "B T H W K D"], k: Array | None,
    v: Array | None, *, bias: Float[Array, "*rest K Q S"] | None = None, frame_valid: Bool[Array, "B T"] | None = None,
    extra_keys: ExtraKeys | None = None, own: bool = True,
) -> Float[Array, "B T H W K D"]:
    """The kernel on every device's own frames (`dim` 1), rows (`dim` 2), or clips and heads (None)."""
    shape = tuple(size // devices if i + 1 == dim else size for i, size in enumerate(layout.shape))
    # a frame mask hides no frame from itself
    part = SequenceLayout(layout.pattern, shape, None if dim == 1 else layout.frame_mask)
    batch, heads = axes_of("batch", q.shape[0]), axes_of("heads", q.shape[4])
    mesh = jax.sharding.get_abstract_mesh()
    split = dim or 1  # whole clips have an axis of one device there: gradients are summed over axes left out
    axis = AXIS if AXIS in mesh.shape else None
    tokens = P(batch, *(axis if d == split else None for d in range(1, 4)), heads, None)
    arrays: dict[str, Any] = {"q": q, "k": k, "v": v}
    specs: dict[str, Any] = {"q": tokens, **dict.fromkeys("kv", tokens if own else None)}
    if extra_keys is not None:
        groups = axis if devices == 1 or (dim == 1 and extra_keys.k.shape[1] > 1) else None
        keys = P(batch, groups, None, heads, None)
        arrays["extra_keys"] = extra_keys
        specs["extra_keys"] = ExtraKeys(keys, keys, None if extra_keys.mask is None else P(batch, groups, None))
    if frame_valid is not None:
        arrays["frame_valid"], specs["frame_valid"] = frame_valid, P(batch, axis if split == 1 else None)
    if bias is not None and (bias.ndim == 3 or bias.shape[0] == 1):
        arrays["bias"], specs["bias"] = bias, P(*[None] * (bias.ndim - 3), heads, None, None)
    elif bias is not None:  # one per sequence: sequences as samples and frames, or samples, rows and columns
        places = {1: layout.shape[:1], 2: layout.shape[1:], None: (-1,)}[dim]
        arrays["bias"] = bias.reshape(q.shape[0], *places, *bias.shape[1:])
        specs["bias"] = P(batch, AXIS if dim else None, *[None] * (len(places) - 1), heads, None, None)

    def device(arrays: dict[str, Array]) -> Array:
        if "bias" in arrays and arrays["bias"].ndim > 4:
            arrays = arrays | {"bias": arrays["bias"].reshape(-1, *arrays["bias"].shape[-3:])}
        return KERNELS[kernel](**arrays, layout=part, own=own)

    return jax.shard_map(device, mesh=mesh, in_specs=(specs,), out_specs=tokens, check_vma=False)(arrays)
