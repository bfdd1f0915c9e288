"""TPU slices that are not there: their names, their devices for the compiler, and what a program for them sends.

The compiler is libtpu, which comes with the extra `[tpu]` and needs no TPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter, defaultdict
from typing import Any

import jax

from vdm_jax.errors import UserError

# Generation -> (dimensions of the torus, TensorCores per chip that the product's name counts).
GENERATIONS = {"v4": (3, 2), "v5e": (2, 1), "v5p": (3, 2), "v6e": (2, 1)}
ENVIRONMENT = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
               "TPU_LOG_DIR": "disabled", "TPU_MIN_LOG_LEVEL": "4", "TPU_STDERR_LOG_LEVEL": "4"}


def full_name(name: str) -> str:
    """The compiler's name of a slice: `v5p-64` (a product, 32 chips) and `v5p:2x4x4` are the same.

    Names of v4 and v5p products count TensorCores, two per chip; those of v5e and v6e count chips. Raises `UserError`
    for names of neither form.
    """
    product = re.fullmatch(r"(v4|v5e|v5litepod|v5p|v6e)-(\d+)", name)
    if product:
        generation = product[1].replace("litepod", "e")
        dimensions, cores = GENERATIONS[generation]
        count = int(product[2])
        chips = count // cores
        if count % cores or chips < 4 or chips & (chips - 1):
            raise UserError(f"topology {name!r} is not a slice; permitted: {generation}-N with N = {4 * cores}, "
                            f"{8 * cores}, {16 * cores}, ... (powers of two), or {generation}:AxB{'xC' * (cores - 1)}")
        return f"{generation}:{'x'.join(map(str, _torus(chips, dimensions)))}"
    if re.fullmatch(r"(v4|v5e|v5p|v6e|tpu7x):\d+x\d+(x\d+)?", name):
        return name
    raise UserError(f"topology {name!r} is unknown; permitted: products such as v5p-128, v5e-16, v6e-256, or slices "
                    "such as v5p:4x4x4, v5e:4x4")


def _torus(chips: int, dimensions: int) -> list[int]:
    """Sides of the most even torus of a power of two of chips."""
    sides = [1] * dimensions
    while chips > 1:
        sides[sides.index(min(sides))] *= 2
        chips //= 2
    return sorted(sides, key=lambda side: (side == 1, side))


def devices(name: str) -> list[jax.Device]:
    """The devices of a slice, for compiling only. Raises `UserError` when libtpu is missing or knows no such slice."""
    found = full_name(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {name} needs libtpu, which is not installed; permitted: pip install "
                        "'vdm_jax[tpu]' (no TPU is needed)")
    from jax.experimental import topologies

    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not jax.config.jax_platforms:  # constants live on the host; nobody should look for a TPU here
        jax.config.update("jax_platforms", "cpu")
    options = {"chip_config_name": "megacore"} if found.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=found, **options).devices)
    except Exception as error:  # libtpu raises several kinds
        raise UserError(f"topology {name!r} ({found}): {' '.join(str(error).split())[:200]}; permitted: a slice that "
                        "libtpu knows, such as v5p:4x4x4") from None


# ---------------------------------------------------------------------------------------------- collectives

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BITS = {"pred": 8, "bf16": 16}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*)$")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|\w+_computations?)=\{?%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Collectives of a compiled program: kind -> count and bytes per device and call.

    Bytes are those of the largest array that a collective takes or gives. What is inside a loop counts as often as the
    loop is known to run.
    """
    bodies, entry = _computations(hlo)
    times = _times(bodies, entry)
    found: dict[str, Counter] = defaultdict(Counter)
    for name, lines in bodies.items():
        for line in lines if times[name] else ():
            kind = _kind(line)
            if kind:
                found[kind]["count"] += times[name]
                found[kind]["bytes"] += times[name] * _largest(line)
    return {kind: dict(found[kind]) for kind in sorted(found)}


def _computations(hlo: str) -> tuple[dict[str, list[str]], str | None]:
    """Instructions of every computation, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    current, entry = None, None
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[2]
            bodies[current] = []
            entry = current if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            bodies[current].append(instruction[1])
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str | None) -> Counter:
    """How often each computation runs in one call. Bodies of fused collectives are left out: the fusion counts."""
    times: Counter = Counter()

    def visit(name: str, factor: int) -> None:
        times[name] += factor
        for line in bodies.get(name, ()):
            trips = int(match[1]) if " while(" in line and (match := _TRIPS.search(line)) else 1
            if _kind(line) is None:
                for called in _CALLED.findall(line):
                    visit(called, factor * trips)

    if entry is not None:
        visit(entry, 1)
    return times


def _kind(instruction: str) -> str | None:
    """Kind of collective that an instruction is; of an asynchronous one its start counts, not its end."""
    for kind in KINDS:
        if re.search(rf"[\s)}}]{kind}(-start)?\(", instruction):
            return kind
    if " fusion(" in instruction and "calls=%all-reduce-scatter" in instruction:
        return "reduce-scatter"
    if 'custom_call_target="AsyncCollectiveStart"' in instruction:
        return next((kind for kind in KINDS if kind in instruction), "all-gather")
    return None


def _largest(instruction: str) -> int:
    """Bytes of the largest array among result and operands (whose shapes the text repeats)."""
    text = instruction.split(", metadata=")[0]
    return max((_bytes(*match) for match in _ARRAY.findall(text)), default=0)


def _bytes(dtype: str, sizes: str) -> int:
    count = 1
    for size in filter(None, sizes.split(",")):
        count *= int(size)
    digits = re.search(r"\d+", dtype)
    return count * BITS.get(dtype, int(digits[0]) if digits else 0) // 8


def describe_collectives(found: dict[str, dict[str, Any]]) -> str:
    """`2 all-gather 128 MiB, ...`, or `none`."""
    return ", ".join(f"{v['count']} {kind} {v['bytes'] / 2**20:,.1f} MiB" for kind, v in found.items()) or "none"
