"""Memory and time of long videos by method, against their length and on several devices.

Run:  python -m experiments.long_video.cost

What a method costs does not depend on what the network has learnt: it is that of configs/nuwa_xl/digits.py with clips
of 16 frames, after one step of training. Every row is a `vdm-jax sample` in a process of its own, from its start to its
end, with an empty cache of compiled programs, so that compilation is included in all alike. Peak memory is the most
that was resident in it at once, interpreter and libraries included. Devices are virtual ones of the CPU. A row is
written when it is there, so an interrupted run goes on.
results/cost.json is the record, and the table of README.md is made of it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.editing.run import describe_machine, read
from experiments.end_to_end.run import VDM_JAX, measured
from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from vdm_jax.configuration import Count
from vdm_jax.generation.long_video.plan import METHODS
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
SIZE = 16  # frames of a clip
NAMED_BY = ("method", "frames", "devices", "steps")  # what a row is of


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure what long videos cost."""

    frames: tuple[Count, ...] = (226, 3376)  # 15^2 + 1 and 15^3 + 1
    methods: tuple[str, ...] = ("nuwa_xl", "autoregressive")
    devices: tuple[Count, ...] = (1, 8)
    steps: Count = 4  # of the sampler
    out: Path = FOLDER / "results" / "cost.json"


def training(run: Path) -> list[str]:
    """One step of the network, without pictures."""
    values = {"base.video.frames": SIZE, "data.frames": SIZE, "data.length": 226, "base.training.steps": 1,
              "base.training.warmup-steps": 1, "base.training.batch-size": 8, "base.training.sample-every": 0,
              "base.training.validate-every": 0}
    return [*VDM_JAX, "train", "nuwa_xl/digits", "--run", str(run), "--quiet", "--data.strides", "1", "15",
            *(part for name, value in values.items() for part in (f"--{name}", str(value)))]


def sampling(run: Path, row: dict[str, Any], out: Path) -> list[str]:
    """The command of a row."""
    return [*VDM_JAX, "sample", str(run), "a red three moving left", "--frames", str(row["frames"]), "--extend",
            row["method"], "--steps", str(row["steps"]), "--out", str(out)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each row, and how memory and time compare."""
    lines = ["| method | frames | segments | one after the other | devices | peak memory, MiB | wall s | CPU s |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]
    lines += [f"| {row['method']} | {row['frames']} | {row['segments']} | {row['rounds']} | {row['devices']} | "
              f"{row['peak_mib'] or '-'} | {row['wall']:.0f} | {row['cpu']:.0f} |" for row in rows]
    machine, used = rows[0]["machine"], ", ".join(f"{name} {of}" for name, of in rows[0]["versions"].items())
    return "\n".join([*lines, "", *compared(rows), f"{machine['kind']}, {machine['cores']} cores; {used}; "
                                                   f"{rows[0]['steps']} sampling steps."])


def compared(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How memory grows with the length, and what several devices save."""
    rows = [row for row in rows if row["steps"] == rows[0]["steps"]]
    by_name, said = {(row["method"], row["frames"], row["devices"]): row for row in rows}, []
    frames, devices = ([row[name] for row in rows] for name in ("frames", "devices"))
    for method in dict.fromkeys(row["method"] for row in rows):
        short, long = (by_name.get((method, length, 1)) for length in (min(frames), max(frames)))
        if short and long and short is not long and short["peak_mib"] and long["peak_mib"]:
            said.append(f"`{method}`: {long['peak_mib'] / short['peak_mib']:.2f} times the memory at {max(frames)} "
                        f"frames of that at {min(frames)}.")
        many = by_name.get((method, max(frames), max(devices)))
        if long and many and many is not long:
            said.append(f"`{method}`: {long['wall'] / many['wall']:.2f} times as fast on {max(devices)} virtual "
                        f"devices as on one, for {max(frames)} frames.")
    return said


def main(options: Run, page: Path = FOLDER / "README.md") -> None:
    """Measure what is missing, row by row, and put the table into the page."""
    wanted = [{"method": method, "frames": frames, "devices": devices, "steps": options.steps}
              for method in options.methods for frames in options.frames for devices in options.devices]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for named in wanted:
            there = read(options.out)
            if any(all(row[name] == named[name] for name in NAMED_BY) for row in there):
                continue
            if not run.exists():
                measured(training(run))
            out = Path(folder) / f"{len(there)}.mp4"
            cost = measured(sampling(run, named, out), JAX_NUM_CPU_DEVICES=str(named["devices"]),
                            JAX_COMPILATION_CACHE_DIR=str(Path(folder) / f"{len(there)}.cache"))
            row = named | planned(named) | cost | describe_machine()
            with atomic_path(options.out) as temporary:
                temporary.write_text(json.dumps([*there, row], indent=1) + "\n")
            print(row["method"], row["frames"], row["devices"], row["peak_mib"], row["wall"], flush=True)
    page.write_text(insert(page.read_text(), "cost", table(read(options.out))))


def planned(row: dict[str, Any]) -> dict[str, int]:
    """Segments of a plan, and its rounds, which wait for one another."""
    plan = METHODS[row["method"]]()
    rounds = [sum(1 for _ in part) for part in plan.rounds(row["frames"], SIZE)]
    return {"segments": sum(rounds), "rounds": len(rounds)}


if __name__ == "__main__":
    sys.exit(exit_code("long_video", lambda: main(tyro.cli(Run, description=__doc__))))
