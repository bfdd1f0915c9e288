"""Collectives of a compiled program, read from its text: which, how often, and how many bytes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"[\s)}]([a-z][\w\-]*)\(([^)]*)\)")  # its name and operands, after the type of the result
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=\{?%?([\w.\-]+)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


class Instruction(NamedTuple):
    """One line of a computation."""

    operation: str
    operands: tuple[str, ...]
    result: str  # text of its type
    text: str

    @property
    def called(self) -> list[str]:
        """Names of the computations it calls."""
        return _CALLED.findall(self.text)


Computation = dict[str, Instruction]


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Collectives in the text of a compiled program: kind -> `count` and `bytes`, per device and call.

    Bytes are those of the operands or of the results, whichever are more. What is inside a loop counts as often as the
    loop runs; a loop whose length cannot be read counts once, and its kinds have a third entry, `unknown_loops`, that
    says how many.
    """
    computations, entry = parse(hlo)
    found: dict[str, Counter] = defaultdict(Counter)

    def visit(name: str, times: int, unknown: int) -> None:
        computation = computations.get(name, {})
        for instruction in computation.values():
            kind = _kind(instruction)
            if kind is not None:
                found[kind].update(count=times, bytes=times * _bytes(instruction, computation))
                if unknown:
                    found[kind]["unknown_loops"] += 1
            elif instruction.operation == "while" and (loop := _LOOP.search(instruction.text)):
                trips = _trips(instruction, computations.get(loop[1], {}))
                visit(loop[2], times * (trips or 1), unknown + (trips is None))
            else:
                for called in instruction.called:
                    visit(called, times, unknown)

    if entry is not None:
        visit(entry, 1, 0)
    return {kind: dict(found[kind]) for kind in sorted(found)}


def describe(found: dict[str, dict[str, int]]) -> str:
    """`2 all-gather 128.0 MiB, ...`, or `none`."""
    parts = []
    for kind, numbers in found.items():
        more = ", more in loops of unknown length" if "unknown_loops" in numbers else ""
        parts.append(f"{numbers['count']} {kind} {numbers['bytes'] / 2**20:,.1f} MiB{more}")
    return ", ".join(parts) or "none"


def parse(hlo: str) -> tuple[dict[str, Computation], str | None]:
    """Instructions by computation and name, and the name of the entry."""
    found: dict[str, Computation] = {}
    current, entry = None, None
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            current = found.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (parsed := _INSTRUCTION.match(line)):
            text = re.sub(r"\{[^{}]*\([^{}]*\}", "", parsed[2])  # layouts have brackets of their own
            operation = _OPERATION.search(text)
            if operation:
                operands = tuple(re.findall(r"%([\w.\-]+)", operation[2]))
                current[parsed[1]] = Instruction(operation[1], operands, text[: operation.start()], parsed[2])
    return found, entry


def _kind(instruction: Instruction) -> str | None:
    """Kind of collective that an instruction is; of an asynchronous one its start counts, not its end."""
    name = instruction.operation.removesuffix("-start")
    if name in KINDS:
        return name
    if name == "fusion" and "calls=%all-reduce-scatter" in instruction.text:  # how the TPU compiler writes some of them
        return "reduce-scatter"
    if 'custom_call_target="AsyncCollectiveStart"' in instruction.text:
        return next((kind for kind in KINDS if kind in instruction.text), "all-gather")
    return None


def _trips(loop: Instruction, condition: Computation) -> int | None:
    """How often a loop runs: as the compiler says, else the one limit that its counter, from 0, is compared with."""
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    limits = [limit[1] for i in condition.values() if (limit := _LIMIT.match(i.text))]
    below = any(i.operation == "compare" and "direction=LT" in i.text for i in condition.values())
    return int(limits[0]) if len(limits) == 1 and below else None


def _bytes(instruction: Instruction, computation: Computation) -> int:
    """Bytes of the operands or of the results, whichever are more; several arrays may travel in one collective."""
    operands = sum(total_bytes(computation[name].result) for name in instruction.operands if name in computation)
    results = total_bytes(instruction.result)
    if instruction.operation.endswith("-start"):  # gives its operands on, beside its results
        results -= operands
    return max(operands, results)


def total_bytes(text: str) -> int:
    """Bytes of all arrays of a type; scalars are synchronisation flags and do not count."""
    return sum(_size(*array) for array in _ARRAY.findall(text) if array[1])


def _size(dtype: str, sides: str) -> int:
    count = 1
    for side in filter(None, sides.split(",")):
        count *= int(side)
    return count * (8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])) // 8
