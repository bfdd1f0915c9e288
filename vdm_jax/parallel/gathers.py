"""Whether split parameters are gathered as they should be, read from a compiled program's text.

A compiler may write a gather as a sum: every device puts its shard into an array of zeros, and all of these are added.
That sends about twice the bytes, and happens where shards are very small (seen with 512 chips on one fsdp axis).
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh

from vdm_jax.parallel.collectives import Computation, collectives, parse, total_bytes
from vdm_jax.parallel.rules import AXIS_RULES

NEGLIGIBLE = 0.01  # share of all bytes that collectives move; a few small arrays are summed in many programs
# Weights of published sizes were gathered in shards of 64 rows on 16 devices and summed in shards of 16 rows on 64.
THIN, FEW_DEVICES = 32, 16
_SAME = ("bitcast", "copy", "convert", "reshape", "transpose")  # change nothing that matters here


def summed_gathers(hlo: str) -> dict[str, int]:
    """All-reduces that stand for all-gathers: name of the instruction -> bytes of its result, per device."""
    computations, _ = parse(hlo)
    found = {}
    for computation in computations.values():
        for name, instruction in computation.items():
            if instruction.operation in ("all-reduce", "all-reduce-start") and any(
                    _is_shard_in_zeros(operand, computation, computations) for operand in instruction.operands):
                found[name] = total_bytes(instruction.result)
    return found


def split_axes(mesh: Mesh) -> list[str]:
    """Mesh axes over which parameters are stored split and used whole."""
    return [axis for axis in AXIS_RULES["embed"] if mesh.shape[axis] > 1]


def thin_shards(params: Any, mesh: Mesh) -> str | None:
    """What is wrong with how parameters (shapes with shardings) are split over a mesh, from shapes alone: more than
    `FEW_DEVICES` devices share them, and more than a hundredth of them is in shards of fewer than `THIN` rows, which
    compilers sum instead of gathering. None when nothing is."""
    axes = split_axes(mesh)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if devices <= FEW_DEVICES:
        return None
    rows = {}
    for leaf in jax.tree.leaves(params):
        for side, part in zip(leaf.shape, leaf.sharding.shard_shape(leaf.shape), strict=True):
            if part < min(side, THIN):
                rows[part] = rows.get(part, 0) + leaf.size
    if sum(rows.values()) <= NEGLIGIBLE * sum(leaf.size for leaf in jax.tree.leaves(params)):
        return None
    shown = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
    return (f"weights split over {devices} devices ({shown}) have shards of {min(rows)} rows: compilers may sum shards "
            f"of fewer than {THIN} rows instead of gathering them, which sends twice as much; fewer devices on fsdp "
            "and more on data avoid it")


def check_gathers(hlo: str, mesh: Mesh) -> list[str]:
    """What is wrong with the gathers of a training step on a mesh, one line each.

    Empty when parameters are not split, or when all is well.
    """
    axes = split_axes(mesh)
    if not axes:
        return []
    shown = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
    lines = []
    found = collectives(hlo)
    if "all-gather" not in found:
        lines.append(f"parameters are split over {shown}, but the program has no all-gather")
    summed = summed_gathers(hlo)
    if sum(summed.values()) > NEGLIGIBLE * sum(kind["bytes"] for kind in found.values()):
        size = f"{sum(summed.values()) / 2**20:,.1f} MiB"
        lines.append(f"{len(summed)} all-gathers of arrays split over {shown} were compiled as all-reduces, {size} "
                     "in all: shards are too small; put fewer devices on that axis and more on data")
    return lines


def _is_shard_in_zeros(name: str, computation: Computation, computations: dict[str, Computation]) -> bool:
    """Whether an operand is a shard put into zeros at a place that depends on the device."""
    name = _origin(name, computation)
    instruction = computation.get(name)
    if instruction is None:
        return False
    if instruction.operation == "fusion":
        inner = next((computations[c] for c in instruction.called if c in computations), {})
        return bool(inner) and _is_shard_in_zeros(list(inner)[-1], inner, computations)  # the root is printed last
    if instruction.operation != "dynamic-update-slice":
        return False
    target, _, *indices = instruction.operands
    base = computation.get(_origin(target, computation))
    return base is not None and base.operation in ("broadcast", "constant") and any(
        index in computation and computation[index].operation != "constant" for index in indices)


def _origin(name: str, computation: Computation) -> str:
    """The instruction that an operand's values come from."""
    while (instruction := computation.get(name)) and instruction.operation in _SAME and instruction.operands:
        name = instruction.operands[0]
    return name

