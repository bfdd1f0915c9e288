"""Where the time of a train step goes, layer by layer: our U-Net of the comparison with Unet3D, on one core.

Run:  python -m experiments.baselines.layers            a minute, on a machine with an idle core
      python -m experiments.baselines.layers --report   only rewrite the table of docs/performance.md

XLA's profiler says how long each instruction took, and the compiled program which layer it belongs to. An instruction
that computes parts of several layers counts for the one that the compiler names.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.readme_tables import insert
from vdm_jax.video.writing import atomic_path

HERE = Path(__file__).parent
RECORD, PAGE = HERE / "results" / "layers.json", HERE.parents[1] / "docs" / "performance.md"
STEPS = 5
SIZES = (32, 64)
# Kind of layer by a part of the path of its instruction, the first that fits
KINDS = {
    "attention: projections": r"attention_\d+/.*/(qkv|out)\b|attention_\d+/out\b",
    "attention: positions and softmax": r"attention_\d+",
    "group norm, SiLU": r"norm|silu",
    "convolutions": r"conv|stem|downsample|upsample|shortcut",
    "joining, residual sums, conditioning": r"SpaceTimeUNet",
    "optimizer and loss": r"train_step",
}
NAMELESS = "copies that the compiler names no layer for"


def kind_of(path: str) -> str:
    """The kind of layer that an instruction belongs to."""
    return next((kind for kind, part in KINDS.items() if re.search(part, path)), NAMELESS)


def names(program: str) -> dict[str, str]:
    """Path in the network of each instruction of a compiled program that has one."""
    return dict(re.findall(r'%?([\w.\-]+) = [^\n]*?op_name="([^"]*)"', program))


def own_times(events: Iterable[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """Of events (name, start, length) of one thread, the time of each that is not that of events inside of it."""
    found: list[list[Any]] = []
    open_ones: list[tuple[float, int]] = []  # end and place of those that are not over
    for name, start, length in sorted(events, key=lambda event: (event[1], -event[2])):
        while open_ones and open_ones[-1][0] <= start:
            open_ones.pop()
        if open_ones:
            found[open_ones[-1][1]][1] -= length
        open_ones.append((start + length, len(found)))
        found.append([name, length])
    return ((name, length) for name, length in found)


def traced(folder: str) -> collections.Counter[str]:
    """Nanoseconds of each instruction in a trace."""
    from jax.profiler import ProfileData

    total: collections.Counter[str] = collections.Counter()
    path = next(Path(folder).rglob("*.xplane.pb"))
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = [(dict(event.stats).get("hlo_op"), event.start_ns, event.duration_ns) for event in line.events]
            for name, length in own_times(event for event in events if event[0]):
                total[name] += length
    return total


def by_kind(times: Mapping[str, float], paths: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Milliseconds of kinds of layers, forward and backward."""
    found: dict[str, dict[str, float]] = {kind: {"forward": 0.0, "backward": 0.0} for kind in (*KINDS, NAMELESS)}
    for name, length in times.items():
        path = paths.get(name, "")
        found[kind_of(path)]["backward" if "transpose(" in path else "forward"] += length / 1e6
    return found


def measured(size: int) -> dict[str, dict[str, float]]:
    """Milliseconds per train step of 10 frames of `size` x `size`, by kind of layer."""
    sys.path.insert(0, str(HERE))  # of scripts
    import jax
    from speed_workers import compiled_ours

    compiled, (state,), inputs, _ = compiled_ours("train", size, 1)
    program = compiled.as_text()
    for _ in range(2):
        state, _ = jax.block_until_ready(compiled(state, *inputs))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, _ = jax.block_until_ready(compiled(state, *inputs))
        found = by_kind(traced(folder), names(program))
    return {kind: {way: round(ms / STEPS, 2) for way, ms in row.items()} for kind, row in found.items()}


def table(record: Mapping[str, Any]) -> str:
    """A row for each kind of layer, with its share of the step at each size."""
    sizes = list(record["sizes"])
    lines = ["| layers | " + " | ".join(f"{size}x{size}: forward, ms | backward, ms | share" for size in sizes) + " |",
             "|---|" + "---:|" * (3 * len(sizes))]
    totals = {size: sum(sum(row.values()) for row in record["sizes"][size].values()) for size in sizes}
    for kind in (*KINDS, NAMELESS):
        rows = {size: record["sizes"][size][kind] for size in sizes}
        cells = (f"{row['forward']:.0f} | {row['backward']:.0f} | {sum(row.values()) / totals[size]:.0%}"
                 for size, row in rows.items())
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    seconds = ", ".join(f"{total / 1000:.2f} s at {size}x{size}" for size, total in totals.items())
    return "\n".join([*lines, "", f"In all {seconds}, one core of {record['device']['cpu']}, "
                      f"{', '.join(f'{name} {version}' for name, version in record['versions'].items())}. "
                      f"Recorded {record['date']}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write docs/performance.md from the record")
    if not parser.parse_args().report:
        # Before JAX counts the cores: with one, instructions follow each other, and their times add up
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        sizes = {str(size): measured(size) for size in SIZES}
        from measuring import device, save, versions

        save(RECORD, {"sizes": sizes, "device": device(1), "versions": versions("jax", "jaxlib", "flax", "vdm_jax"),
                      "date": datetime.date.today().isoformat()})
    with atomic_path(PAGE) as temporary:
        temporary.write_text(insert(PAGE.read_text(), "layers", table(json.loads(RECORD.read_text()))))
    print(PAGE)


if __name__ == "__main__":
    main()
