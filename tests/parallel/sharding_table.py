"""The sharding of a network as text: which parameters are split how, and what a device holds; golden files keep it."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vdm_jax.parallel.rules import parameter_axes, parameter_partition, path_name


def sharding_table(params: Any, mesh: Mesh) -> str:
    """Parameter paths, their logical axes and their partition on a mesh, one line per distinct combination.

    `params` is a tree of arrays or shapes. Indices in paths are written as `*`, the blocks on the way down, in the
    middle and up as `block`, and vectors by their last name. Parameters that are held whole stand in the last lines. A
    header says how much of all parameters a device holds.
    """
    rows: dict[tuple[str, str, str], None] = {}
    total = held = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        axes, partition = parameter_axes(name, leaf.ndim), parameter_partition(name, leaf.shape, mesh)
        rows[_pattern(name, leaf.ndim), _words(axes), _words(partition)] = None
        total += leaf.size
        held += leaf.size // math.prod(mesh.shape[axis] for names in partition for axis in _names(names))
    sizes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    header = f"{sizes}: {total:,} parameters, {held:,} per device ({held * mesh.size / total:.3f} of an even share)"
    ordered = sorted(rows, key=lambda row: (set(row[2].split()) <= {"-"}, row))
    widths = [max(len(row[column]) for row in ordered) for column in range(2)]
    lines = [f"{path:{widths[0]}}  {axes:{widths[1]}}  {partition}" for path, axes, partition in ordered]
    return "\n".join([header, *lines]) + "\n"


def _pattern(name: str, ndim: int) -> str:
    """A path without what makes it one of many."""
    if ndim < 2:
        return f"*/{name.split('/')[-1]}"
    return re.sub(r"\d+", "*", re.sub(r"^((down|up)_\d+_\d+|middle_(in|out))/", "block/", name[1:]))


def _names(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _words(axes: tuple[str | None, ...] | P) -> str:
    """One word per dimension; those in front that are not split are left out."""
    words = ["+".join(_names(axis)) or "-" for axis in axes]
    while len(words) > 2 and words[0] == "-":
        words = words[1:]
    return " ".join(words)
