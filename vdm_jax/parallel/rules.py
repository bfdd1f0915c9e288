"""Where every array lives: logical axes, the mesh axes they map to, and the logical axes of each parameter.

The whole policy is the two tables below. Parameters are sharded by name and shape, without boxes; activations by
`shard(x, *axes)` inside the jitted function.
"""

from __future__ import annotations

import functools
import itertools
import math
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
    "frames": ("context",),  # of a network whose videos are spread by frames
    "height": ("context",),  # of a network whose videos are spread by rows
    "width": ("context",),  # of a network whose videos are spread by columns
    "channels": None,
    "heads": ("tensor",),  # attention heads
    "embed": ("fsdp", "context"),  # the side of a kernel that faces the residual stream: stored split, used whole
    "mlp": ("tensor",),  # the hidden side of a pair of layers: stored split, used split
    "vocabulary": None,
}

VIDEO = {"frames": 1, "height": 2, "width": 3}  # dimensions of a video

# Path of a parameter -> logical axes of its last dimensions (the ones before are not split). Pairs of layers split
# their hidden features over `tensor`, so that only the second one's output is summed over devices (Shoeybi et al. 2019,
# arXiv 1909.08053, section 3).
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r".*/(qkv|(outside_)?query|key_value|external)(_\d+)?/kernel", ("embed", "heads")),
    (r".*(_attention(_\d+)?/(outside_)?out|/encoder/out_\d+)/kernel", ("heads", "embed")),
    # Between the convolutions of an inflation block channels are split, and its projection is small: it is used whole.
    (r".*/convolution_inflation_\d+/temporal/kernel", ("mlp", "embed")),
    (r".*_inflation_\d+/out/kernel", ("embed", None)),
    # So are the maps into and out of an open transformer: split, they would leave the residual stream between them
    # split by channels, and every norm would gather it.
    (r".*_(transformer|motion)/(in|out)/kernel", ("embed", None)),
    (r".*/(level|text|image|scalars|places|pooled|scale)_out/kernel", ("mlp", "embed")),
    (r".*(_frames/conv_[134]|/temporal_convolution/up)/kernel", ("mlp", "embed")),  # temporal convolutions are pairs
    (r".*(residual/conv_out|feed_forward(_\d+)?/out|/encoder/contract_\d+|/single_\d+/out)/kernel", ("mlp", "embed")),
    (r"/(encoder|decoder)/((down|up)_\d+_\d+|middle[/_](in|out))/conv_out/kernel", ("mlp", "embed")),
    (r".*/kernel", ("embed", "mlp")),  # convolutions (kt, kh, kw, in, out) and dense (in, out)
    (r".*/(words|label/classes)", ("vocabulary", "embed")),
    (r".*", ()),  # biases, norms, tables: replicated
)


def spec(axes: tuple[str | None, ...], mesh: Mesh) -> P:
    """PartitionSpec of logical axes on a mesh. Raises `UserError` on an unknown logical axis."""
    return P(*(_split_axes(axis, mesh) or None for axis in axes))


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
            _mesh_axes(axis)
        return x
    partition = spec(axes, mesh)
    for axis, size, names in zip(axes, x.shape, partition, strict=True):
        parts = _parts(names, mesh)
        if size % parts:
            raise UserError(f"axis {axis!r} of size {size} does not divide over {parts} devices of mesh axes {names}; "
                            f"permitted: multiples of {parts}")
    return jax.lax.with_sharding_constraint(x, partition)


def shard_along(x: Array, axis: str, *, dim: int | None = None, must: bool = True) -> Array:
    """Split one dimension of `x` over the mesh in context and leave the others to the compiler.

    `dim` is that of a video `[B, T, H, W, ...]` where it is not given.

    Without a mesh, or where one device has the whole axis, nothing is constrained. Raises `UserError` when the size
    does not divide; with `must=False` it is then kept whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(name for name in _mesh_axes(axis) if mesh.shape.get(name, 1) > 1)
    dim, parts = VIDEO[axis] if dim is None else dim, _parts(names, mesh)
    if parts == 1 or (x.shape[dim] % parts and not must):
        return x
    if x.shape[dim] % parts:
        what = {"height": "rows (at a level of the network)", "width": "columns (of tokens)"}.get(axis, axis)
        raise UserError(f"a video of {x.shape[dim]} {what} does not divide over {parts} devices of mesh axes {names}; "
                        f"permitted: multiples of {parts}")
    free = [P.UNCONSTRAINED] * x.ndim
    free[dim] = names
    return jax.lax.with_sharding_constraint(x, P(*free))


def parameter_axes(name: str, ndim: int) -> tuple[str | None, ...]:
    """Logical axis of every dimension of the parameter at a path like `/down_0_0/residual/conv_in/kernel`."""
    axes = next(axes for pattern, axes in PARAMETER_AXES if re.fullmatch(pattern, name))
    axes = axes[max(len(axes) - ndim, 0) :]
    return (None,) * (ndim - len(axes)) + axes


def parameter_partition(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """How a parameter is split.

    Where the mesh does not divide the dimension that the rules name, another dimension of the same parameter is split,
    the largest first, and one dimension may be split over several mesh axes. Only what divides nowhere stays whole, so
    that a device holds its share of a large network whatever the widths of its layers.
    """
    return _partition(parameter_axes(name, len(shape)), shape, mesh)


@functools.lru_cache(maxsize=4096)  # a network has hundreds of parameters of a few dozen shapes
def _partition(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
    """The best of all ways to split a parameter of these logical axes."""
    wanted = {name: dim for dim, axis in enumerate(axes) for name in _split_axes(axis, mesh)}
    wanted = dict(sorted(wanted.items(), key=lambda item: item[0] != "tensor"))  # gathering the rest leaves its blocks
    largest = sorted(range(len(shape)), key=lambda dim: -shape[dim])
    choices = [[dim, *(d for d in largest if d != dim), None] for dim in wanted.values()]  # best first; None: not split

    def split(places: tuple[int | None, ...]) -> list[tuple[str, ...]]:
        return [tuple(n for n, d in zip(wanted, places, strict=True) if d == dim) for dim in range(len(shape))]

    def merit(places: tuple[int | None, ...]) -> tuple[int, int]:
        parts = [_parts(names, mesh) for names in split(places)]
        fits = all(size % n == 0 for size, n in zip(shape, parts, strict=True))
        ranks = sum(choice.index(place) for choice, place in zip(choices, places, strict=True))
        return (math.prod(parts), -ranks) if fits else (0, 0)

    return P(*(names or None for names in split(max(itertools.product(*choices), key=merit))))


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf of a parameter-like tree (parameters, EMA, optimizer moments)."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_partition(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, params)


def path_name(path: tuple) -> str:
    """A key path as text, `/down_0_0/residual/conv_in/kernel`."""
    return "/" + "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: the first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, spec(("batch",), mesh))


def features_sharding(shape: tuple[int, ...], axis: str | None, mesh: Mesh) -> NamedSharding:
    """Where features `[B, T, H, W, C]` of a network live that splits `axis` of its videos, or None of them: a dimension
    that the devices do not divide is whole."""
    logical = {0: "batch"} if axis is None else {0: "batch", VIDEO[axis]: axis}
    split = [_split_axes(logical.get(dim), mesh) for dim in range(len(shape))]
    fits = (names if names and size % _parts(names, mesh) == 0 else None
            for names, size in zip(split, shape, strict=True))
    return NamedSharding(mesh, P(*fits))


def batch_parts(mesh: Mesh) -> int:
    """How many devices share a batch."""
    return _parts(AXIS_RULES["batch"], mesh)


def _parts(names: tuple[str, ...] | str | None, mesh: Mesh) -> int:
    parts = 1
    for name in (names,) if isinstance(names, str) else names or ():  # PartitionSpec unwraps tuples of one
        parts *= mesh.shape[name]
    return parts


def _mesh_axes(axis: str | None) -> tuple[str, ...]:
    """Mesh axes of a logical axis. Raises `UserError` on an unknown one."""
    if axis is not None and axis not in AXIS_RULES:
        raise UserError(f"logical axis {axis!r} is unknown; permitted: {', '.join(AXIS_RULES)}, None")
    return (AXIS_RULES[axis] or ()) if axis else ()


def _split_axes(axis: str | None, mesh: Mesh) -> tuple[str, ...]:
    """Those mesh axes of a logical axis that have several devices."""
    return tuple(name for name in _mesh_axes(axis) if mesh.shape[name] > 1)
