"""Convolutions of videos whose frames or rows are spread over the mesh axis `context`.

Every device convolves its own part and gets what it needs of its neighbours' parts (the halo) by collective permutes.
The compiler would exchange halos by itself, but not here: `convolve` folds frames or rows into the batch, and a batch
whose samples are split is not contiguous once they are folded, so the compiler gathers the whole activation instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.parallel.rules import AXIS_RULES, VIDEO


def sharded_convolve(
    convolve: Callable[..., Array], x: Float[Array, "B T H W C"], kernel: Float[Array, "kt kh kw C O"],
    strides: tuple[int, int], axis: str, causal: bool = False, replicate: bool = False,
) -> Float[Array, "B T2 H2 W2 O"]:
    """`convolve(x, kernel, strides, causal)` on the mesh in context, where a video's `frames` or `height` are split.

    `convolve` is a convolution with 'same' padding of the axis; strides are spatial, and a causal one sees no later
    frames. With `replicate`, which is then what it does itself, frames beyond the ends are the first and the last one.

    Without a mesh, or where one device has the whole axis, or the axis does not divide, it is left to the compiler.
    Raises `UserError` when a device has fewer frames or rows than the kernel reaches to, or its rows do not divide by
    the stride.
    """
    mesh = jax.sharding.get_abstract_mesh()
    (name,) = AXIS_RULES[axis]
    devices, dim = mesh.shape.get(name, 1), VIDEO[axis]
    pointwise = kernel.shape[:3] == (1, 1, 1) and strides == (1, 1)
    if devices == 1 or pointwise or x.shape[dim] % devices:
        return convolve(x, kernel, strides, causal)
    own, size, stride = x.shape[dim] // devices, kernel.shape[dim - 1], strides[0] if axis == "height" else 1
    before = stride * math.ceil((size - 1) // 2 / stride)  # whole strides, so that outputs stay where they are
    after = max(size // 2 - stride + 1, 0)
    if causal and axis == "frames":
        before, after = size - 1, 0
    if own % stride or max(before, after) > own:
        least = max(before, after, stride)
        raise UserError(f"{axis} of {x.shape[dim]} over {devices} devices of mesh axis {name!r} leaves {own} to each, "
                        f"for a convolution of size {size} and stride {stride}; permitted: at least {least} each, in "
                        f"multiples of {stride}")

    def device(x: Array, kernel: Array) -> Array:
        parts = [x]

        def at_border(halo: Array, device: int, frame: int) -> Array:  # where nothing is received, which is zeros
            if not replicate or axis != "frames":
                return halo
            repeated = jnp.broadcast_to(lax.slice_in_dim(x, frame, frame + 1, axis=dim), halo.shape)
            return jnp.where(lax.axis_index(name) == device, repeated, halo)

        if before:
            last = lax.slice_in_dim(x, own - before, own, axis=dim)
            halo = lax.ppermute(last, name, [(d, d + 1) for d in range(devices - 1)])
            parts.insert(0, at_border(halo, 0, 0))
        if after:
            first = lax.slice_in_dim(x, 0, after, axis=dim)
            halo = lax.ppermute(first, name, [(d + 1, d) for d in range(devices - 1)])
            parts.append(at_border(halo, devices - 1, own - 1))
        y = convolve(jnp.concatenate(parts, axis=dim), kernel, strides, causal)
        return lax.slice_in_dim(y, before // stride, (before + own) // stride, axis=dim)

    rows = tuple(n for n in AXIS_RULES["batch"] if n in mesh.shape)
    if x.shape[0] % math.prod(mesh.shape[n] for n in rows):
        rows = None
    spec = P(rows, *(name if d == dim else None for d in range(1, 5)))
    manual = {n for n in mesh.axis_names if n not in AXIS_RULES["mlp"] or mesh.shape[n] == 1}  # it splits channels
    return jax.shard_map(device, mesh=mesh, in_specs=(spec, P()), out_specs=spec, axis_names=manual,
                         check_vma=False)(x, kernel)
