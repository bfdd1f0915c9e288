"""Whether split parameters are gathered, and their gradients summed, as they should be: from shapes, and from a
compiled program's text.

The compiler for TPUs (libtpu 0.0.42) writes some gathers as sums: every device puts its shard into an array of zeros,
and all of these are added, which sends about twice the bytes. Its pass `all_gather_decomposer` does so where the group
of devices that gathers is a whole slice of 64 chips or more, whatever the size of the shards; half of the slice
gathers. It also sums gradients whole, instead of scattering their sum, where a device would keep fewer than 8 rows.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from vdm_jax.parallel.collectives import Computation, Instruction, collectives, parse, total_bytes
from vdm_jax.parallel.rules import AXIS_RULES

NEGLIGIBLE = 0.01  # share of all bytes that collectives move; a few small arrays are summed in many programs
WHOLE_SLICE = 64  # chips: whole slices of up to 48 gathered, those of 64, 128, 256, 512 and 1,024 summed
THIN = 8  # rows of a shard: gradients in shards of 8 were scattered, in shards of 4 summed whole
_SAME = ("bitcast", "copy", "convert", "reshape", "transpose")  # change nothing that matters here
_PARAMETER = re.compile(r"parameter\((\d+)\)")

_Caller = tuple[Instruction, Computation]  # the fusion that calls a computation, and where it stands


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


def check_shards(params: Any, mesh: Mesh | AbstractMesh) -> str | None:
    """What the compiler for TPUs would sum, from shapes alone: parameters (shapes with shardings) that a whole slice of
    `WHOLE_SLICE` chips or more shares, or gradients of which more than a hundredth is in shards of fewer than `THIN`
    rows. None when nothing is, and on other platforms. A mesh without devices counts as one slice of TPUs."""
    slices = 1
    if isinstance(mesh, Mesh):
        if mesh.devices.flat[0].platform != "tpu":
            return None
        slices = len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})
    axes = split_axes(mesh)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if not axes:
        return None
    shown = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
    if devices >= WHOLE_SLICE and devices in (mesh.size, mesh.size // slices):
        return (f"weights are split over all {devices} devices of a slice ({shown}): the compiler for TPUs sums the "
                "shards of so large a group instead of gathering them, which sends twice as much; half as many devices "
                "on fsdp and twice as many on data avoid it")
    rows = {}
    for leaf in jax.tree.leaves(params):
        for side, part in zip(leaf.shape, leaf.sharding.shard_shape(leaf.shape), strict=True):
            if part < min(side, THIN):
                rows[part] = rows.get(part, 0) + leaf.size
    share = sum(rows.values()) / max(sum(leaf.size for leaf in jax.tree.leaves(params)), 1)
    if share <= NEGLIGIBLE:
        return None
    return (f"{share:.0%} of the weights, split over {devices} devices ({shown}), are in shards of "
            f"{', '.join(map(str, sorted(rows)))} rows: the compiler for TPUs sums gradients of fewer than {THIN} rows "
            "whole instead of scattering the sum, which sends twice as much; fewer devices on fsdp and more on data "
            "avoid it")


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
                     "in all, which sends twice as much: put fewer devices on that axis and more on data")
    return lines


def _is_shard_in_zeros(name: str, computation: Computation, computations: dict[str, Computation],
                       caller: _Caller | None = None) -> bool:
    """Whether an operand is a shard put into zeros at a place that depends on the device."""
    instruction = computation.get(_origin(name, computation))
    if instruction is None:
        return False
    if instruction.operation == "fusion":
        inner = next((computations[c] for c in instruction.called if c in computations), {})
        return bool(inner) and _is_shard_in_zeros(list(inner)[-1], inner, computations,  # the root is printed last
                                                  (instruction, computation))
    if instruction.operation != "dynamic-update-slice":
        return False
    target, _, *indices = instruction.operands
    base = _given(computation.get(_origin(target, computation)), caller)
    return base is not None and base.operation in ("broadcast", "constant") and any(
        index in computation and computation[index].operation != "constant" for index in indices)


def _given(instruction: Instruction | None, caller: _Caller | None) -> Instruction | None:
    """What stands for a parameter of a fusion where it is called; any other instruction as it is."""
    if instruction is None or instruction.operation != "parameter" or caller is None:
        return instruction
    fusion, outside = caller
    number = int(_PARAMETER.search(instruction.text)[1])
    return outside.get(_origin(fusion.operands[number], outside)) if number < len(fusion.operands) else None


def _origin(name: str, computation: Computation) -> str:
    """The instruction that an operand's values come from."""
    while (instruction := computation.get(name)) and instruction.operation in _SAME and instruction.operands:
        name = instruction.operands[0]
    return name
