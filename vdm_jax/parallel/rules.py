"""Where every array lives: logical axes, the mesh axes they map to, and the logical axes of each parameter.

The whole policy is the two tables below. Parameters are sharded by name and shape, without boxes; activations by
`shard(x, *axes)` inside the jitted function.
"""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from vdm_jax.errors import UserError

# Logical axis -> mesh axes. None: never split.
AXIS_RULES: dict[str, tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),  # samples
    "frames": ("context",),
    "height": None,
    "width": None,
    "channels": None,
    "in": ("fsdp",),  # input features of a kernel
    "out": ("tensor",),  # output features of a kernel
    "vocabulary": None,
}

# Path of a parameter -> logical axes of its last dimensions (the ones before are not split).
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r".*/kernel", ("in", "out")),  # convolutions (kt, kh, kw, in, out) and dense (in, out)
    (r".*/encoder/words", ("vocabulary", "out")),
    (r".*", ()),  # biases, norms, tables: replicated
)


def spec(axes: tuple[str | None, ...], mesh: Mesh) -> P:
    """PartitionSpec of logical axes on a mesh. Raises `UserError` on an unknown logical axis."""
    entries = []
    for axis in axes:
        if axis is not None and axis not in AXIS_RULES:
            raise UserError(f"logical axis {axis!r} is unknown; permitted: {', '.join(AXIS_RULES)}, None")
        names = tuple(n for n in (AXIS_RULES[axis] or ()) if mesh.shape[n] > 1) if axis else ()
        entries.append(names if names else None)
    return P(*entries)


def shard(x: Array, *axes: str | None) -> Array:
    """Constrain `x` to the mesh in context (`jax.set_mesh`), one logical axis or None per dimension.

    Without a mesh in context nothing is constrained, but names are still checked. Raises `UserError` on unknown
    names, on a wrong number of axes, and on sizes that the mesh does not divide.
    """
    if len(axes) != x.ndim:
        raise UserError(f"shard: {len(axes)} axes {axes} for an array of shape {x.shape}; permitted: {x.ndim} axes")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        for axis in axes:
            if axis is not None and axis not in AXIS_RULES:
                raise UserError(f"logical axis {axis!r} is unknown; permitted: {', '.join(AXIS_RULES)}, None")
        return x
    partition = spec(axes, mesh)
    for axis, size, names in zip(axes, x.shape, partition, strict=True):
        parts = _parts(names, mesh)
        if size % parts:
            raise UserError(f"axis {axis!r} of size {size} does not divide over {parts} devices of mesh axes {names}; "
                            f"permitted: multiples of {parts}")
    return jax.lax.with_sharding_constraint(x, partition)


def spread_frames(x: Array) -> Array:
    """Split the frames (axis 1) of `[B, T, ...]` over the mesh in context and leave the other axes to the compiler.

    Without a mesh, or where one device holds all frames, nothing is constrained. Raises `UserError` when the frames do
    not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in AXIS_RULES["frames"] or () if mesh.shape.get(axis, 1) > 1)
    if not axes:
        return x
    parts = _parts(axes, mesh)
    if x.shape[1] % parts:
        raise UserError(f"a video of {x.shape[1]} frames does not divide over {parts} devices of mesh axes {axes}; "
                        f"permitted: multiples of {parts} frames")
    free = P.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, P(free, axes, *(free,) * (x.ndim - 2)))


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf of a parameter-like tree (parameters, EMA, optimizer moments).

    A dimension that the mesh does not divide stays whole: small layers are replicated, which costs little.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = "/" + "/".join(_key_name(k) for k in path)
        axes = next(axes for pattern, axes in PARAMETER_AXES if re.fullmatch(pattern, name))
        axes = axes[max(len(axes) - leaf.ndim, 0) :]
        axes = (None,) * (leaf.ndim - len(axes)) + axes
        entries = [names if size % _parts(names, mesh) == 0 else None
                   for size, names in zip(leaf.shape, spec(axes, mesh), strict=True)]
        return NamedSharding(mesh, P(*entries))

    return jax.tree_util.tree_map_with_path(place, params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: the first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, spec(("batch",), mesh))


def batch_parts(mesh: Mesh) -> int:
    """How many devices share a batch."""
    return _parts(AXIS_RULES["batch"], mesh)


def _parts(names: tuple[str, ...] | str | None, mesh: Mesh) -> int:
    parts = 1
    for name in (names,) if isinstance(names, str) else names or ():  # PartitionSpec unwraps tuples of one
        parts *= mesh.shape[name]
    return parts


def _key_name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
