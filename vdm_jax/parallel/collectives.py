"""Collectives of a compiled program, read from its text: which, how often, how many bytes, among which devices, and
what is computed between the start and the end of those that do not make the device wait."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

_METADATA = re.compile(r', metadata=\{(?:[^{}"]|"[^"]*")*\}')  # where an instruction was traced: most of the text
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_END = re.compile(r"\}(, .*)?")  # not the second line of a kernel's metadata, which is `}}, ...`
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_LAYOUT = re.compile(r"\{[^{}]*\([^{}]*\}")  # has brackets of its own
_OPERATION = re.compile(r"[\s)}]([a-z][\w\-]*)\(([^)]*)\)")  # its name and operands, after the type of the result
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=\{?%?([\w.\-]+)", re.ASCII)
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
                    r" \{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_SCHEDULED = re.compile(r"^HloModule .*\bis_scheduled=true", re.MULTILINE)
_COMPUTING = ("fusion", "convolution", "dot", "custom-call", "while", "conditional", "call")
# How the TPU compiler marks an asynchronous collective: a fusion that starts it, fusions that compute while it goes on,
# and a fusion that waits for it. All of them repeat the collective.
_START, _END_OF, _CARRIES = "AsyncCollectiveStart", "AsyncCollectiveDone", "async_collective_fusion"


class Instruction(NamedTuple):
    """One line of a computation."""

    operation: str
    operands: tuple[str, ...]
    result: str  # text of its type
    text: str
    called: tuple[str, ...]  # names of computations


class Computation(dict[str, Instruction]):
    """Instructions by name, in the order of the text."""

    @functools.cached_property
    def starts(self) -> bool:
        """Whether one of them starts an asynchronous collective."""
        return any(_START in one.text for one in self.values())

    @functools.cached_property
    def ends(self) -> bool:
        """Whether one of them waits for an asynchronous collective."""
        return any(_END_OF in one.text for one in self.values())


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str  # of `KINDS`
    bytes: int  # of its operands or of its results, whichever are more, per device and time
    times: int  # how often a call of the program runs it
    unknown_loops: int  # of the loops around it, how many have a length that cannot be read (and count once)
    groups: tuple[tuple[int, ...], ...] | None  # devices that exchange, or pairs; () is all together, None unreadable
    # Instructions that compute between its start and its end; None for one that makes the device wait.
    distance: int | None = None
    cycles: int = 0  # of these instructions, as the compiler estimates them


def listed(hlo: str) -> list[Collective]:
    """The collectives in the text of a compiled program, those in loops once, with the number of times they run.

    Devices are numbered as the program numbers its partitions: in the order of `mesh.devices.flat`.
    """
    computations, entry = parse(hlo)
    scheduled = _SCHEDULED.search(hlo) is not None  # else the text is in no order

    def visit(name: str, times: int, unknown: int) -> Iterator[Collective]:
        computation = computations.get(name, Computation())
        for place, instruction in computation.items():
            found, inside = _starts(instruction, computation, computations)
            if found is not None:
                may_go_on = scheduled and instruction.operation not in KINDS  # those make the device wait
                between = _between(place, found, computation, computations) if may_go_on else (None, 0)
                yield Collective(_kind(found), _bytes(found, inside), times, unknown,
                                 _groups_of(found, computations), *between)
            elif instruction.operation == "while" and (loop := _LOOP.search(instruction.text)):
                trips = _trips(instruction, computations.get(loop[1], {}))
                yield from visit(loop[2], times * (trips or 1), unknown + (trips is None))
            elif not _goes_on(instruction, computations):
                for called in instruction.called:
                    yield from visit(called, times, unknown)

    return list(visit(entry, 1, 0)) if entry is not None else []


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Collectives in the text of a compiled program: kind -> `count` and `bytes`, per device and call.

    Bytes are those of the operands or of the results, whichever are more. What is inside a loop counts as often as the
    loop runs; a loop whose length cannot be read counts once, and its kinds have a third entry, `unknown_loops`, that
    says how many.
    """
    found: dict[str, Counter] = defaultdict(Counter)
    for one in listed(hlo):
        found[one.kind].update(count=one.times, bytes=one.times * one.bytes)
        if one.unknown_loops:
            found[one.kind]["unknown_loops"] += 1
    return {kind: dict(found[kind]) for kind in sorted(found)}


def axes_of(groups: tuple[tuple[int, ...], ...] | None, shape: Mapping[str, int]) -> tuple[str, ...] | None:
    """The mesh axes (longer than 1) along which the devices of a group differ; `shape` is the mesh's.

    None for groups that cannot be read. A permutation crosses an axis if any of its pairs does.
    """
    sizes = tuple(shape.values())
    if groups is None or any(d >= np.prod(sizes) for group in groups for d in group):
        return None
    if not groups:
        return tuple(axis for axis, size in shape.items() if size > 1)
    crossed = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), sizes))
        crossed |= (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, cross in zip(shape, crossed, strict=True) if cross)


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
    for line in _METADATA.sub("", hlo).splitlines():
        if header := _HEADER.match(line):
            current = found.setdefault(header[2], Computation())
            entry = header[2] if header[1] else entry
        elif _END.fullmatch(line):
            current = None
        elif current is not None and (parsed := _INSTRUCTION.match(line)):
            text = _LAYOUT.sub("", parsed[2])
            operation = _OPERATION.search(text)
            if operation:
                operands = tuple(re.findall(r"%([\w.\-]+)", operation[2]))
                current[parsed[1]] = Instruction(operation[1], operands, text[: operation.start()], parsed[2],
                                                 tuple(_CALLED.findall(parsed[2], operation.end())))
    return found, entry


def _kind(instruction: Instruction) -> str | None:
    """Kind of collective that an instruction is; of an asynchronous one its start counts, not its end."""
    name = instruction.operation.removesuffix("-start")
    if name in KINDS:
        return name
    if name == "fusion" and "calls=%all-reduce-scatter" in instruction.text:  # how the TPU compiler writes some of them
        return "reduce-scatter"
    return None


def _starts(instruction: Instruction, computation: Computation, computations: dict[str, Computation]
            ) -> tuple[Instruction | None, Computation]:
    """The collective that an instruction is or starts, and the computation in which that stands."""
    if _kind(instruction) is not None:
        return instruction, computation
    for called in instruction.called if instruction.operation in ("fusion", "async-start") else ():
        inner = computations.get(called, Computation())
        if instruction.operation == "async-start" or inner.starts:
            return next((i for i in inner.values() if _kind(i) is not None), None), inner
    return None, computation


def _ends(instruction: Instruction, computations: dict[str, Computation]) -> bool:
    """Whether an instruction waits for a collective that was started before."""
    return instruction.operation.endswith("-done") or instruction.operation == "fusion" and any(
        computations[called].ends for called in instruction.called if called in computations)


def _goes_on(instruction: Instruction, computations: dict[str, Computation]) -> bool:
    """Whether the collectives in what an instruction calls were started, and counted, before."""
    return (_ends(instruction, computations) or instruction.operation == "async-update"
            or any(called.startswith(_CARRIES) for called in instruction.called))


def _between(start: str, collective: Instruction, computation: Computation, computations: dict[str, Computation]
             ) -> tuple[int | None, int]:
    """How many instructions compute between the start of a collective and its end, and their estimated cycles; None
    where it has no end, since the device waits for it."""
    channel, count, cycles = _CHANNEL.search(collective.text), 0, 0
    names = list(computation)
    for name in names[names.index(start) + 1 :]:
        instruction = computation[name]
        if _ends(instruction, computations):
            texts = (i.text for called in instruction.called for i in computations.get(called, {}).values())
            if start in instruction.operands or channel and any(
                    (other := _CHANNEL.search(text)) and other[1] == channel[1] for text in texts):
                return count, cycles
        elif (instruction.operation in _COMPUTING
              and _starts(instruction, computation, computations)[0] is None):
            count, cycles = count + 1, cycles + _cycles(instruction, computations)
    return None, 0


def _cycles(instruction: Instruction, computations: dict[str, Computation]) -> int:
    """The compiler's estimate of an instruction, of a loop as often as it runs; 0 where there is none."""
    if instruction.operation == "while" and (loop := _LOOP.search(instruction.text)):
        body = computations.get(loop[2], {}).values()
        return (_trips(instruction, computations.get(loop[1], {})) or 1) * sum(_cycles(i, computations) for i in body)
    found = _CYCLES.search(instruction.text)
    return int(found[1]) if found else 0


def _groups_of(instruction: Instruction, computations: dict[str, Computation]) -> tuple[tuple[int, ...], ...] | None:
    """Groups of a collective; those of a fused one stand in the computation that it calls."""
    text = instruction.text
    if "replica_groups=" not in text and "source_target_pairs=" not in text:
        for called in instruction.called:
            inner = (i.text for i in computations.get(called, {}).values() if "replica_groups=" in i.text)
            text = next(inner, text)
    return read_groups(text)


def read_groups(text: str) -> tuple[tuple[int, ...], ...] | None:
    """Groups of devices in any of the forms in which XLA writes them: listed, as a reshaped count, or as axes of a
    mesh of its own. None when there is no form that is known; () when all devices are one group."""
    if re.search(r"replica_groups=\{\}", text):
        return ()
    if found := _LISTED.search(text):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d, ]+)\}", found[1]))
    if found := _COUNTED.search(text):
        return _rows(_counted(found[2], found[3]).reshape(_sides(found[1])))
    if not (found := _NAMED.search(text)):
        return None
    axes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    sizes, parts = [int(size) for size in axes.values()], []  # parts: the axes, cut where only a part of one is named
    for axis, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[4]):
        parts.append((list(axes).index(axis), int(before or 1), int(size or axes[axis])))
    ids = _counted(found[2] or ",".join(axes.values()), found[3]).reshape(sizes)
    return _rows(_along(ids, parts))


def _along(ids: np.ndarray, parts: list[tuple[int, int, int]]) -> np.ndarray:
    """`[groups, members]`: devices that differ only in the parts `(axis, size before, size)` of their place."""
    shape, chosen = [], []
    for axis, size in enumerate(ids.shape):
        cuts = sorted((before, length) for a, before, length in parts if a == axis)
        rest = 1
        for before, length in cuts:
            shape += [before // rest, length]
            chosen.append(len(shape) - 1)
            rest = before * length
        shape.append(size // rest)
    others = [i for i in range(len(shape)) if i not in chosen]
    members = int(np.prod([shape[i] for i in chosen]))
    return ids.reshape(shape).transpose(*others, *chosen).reshape(-1, members)


def _counted(sides: str, order: str | None) -> np.ndarray:
    ids = np.arange(np.prod(_sides(sides))).reshape(_sides(sides))
    return ids.transpose(_sides(order)) if order else ids


def _sides(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _rows(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in groups.tolist())


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
    if instruction.operation.endswith("-start"):  # gives its operands on, in addition to its results
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
