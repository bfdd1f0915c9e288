"""What a user waits for: commands from their start to their end, and compilation of the configs' programs on this CPU.

Every row is a process of its own: wall seconds, processor seconds (user and system), peak of resident memory, and the
share of the machine that other processes took meanwhile. The first sample is cold in an empty compilation cache, and
warm in the one that it leaves.

Run:  python -m experiments.end_to_end.run commands    # a minute or two on an idle machine of two cores
      python -m experiments.end_to_end.run compile     # minutes; adds the rows that results/compile.json lacks
      python -m experiments.end_to_end.run demo        # of runs/captioned_digits, which make demo has trained
      python -m experiments.end_to_end.run report      # only rewrite the tables of docs/performance.md
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.readme_tables import insert
from vdm_jax.benchmark.machine import busy_seconds, describe
from vdm_jax.errors import UserError
from vdm_jax.runs.directory import read_cascade
from vdm_jax.versions import versions
from vdm_jax.video.writing import atomic_path

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = Path(__file__).parent / "results", ROOT / "docs" / "performance.md"
VDM_JAX = [sys.executable, "-m", "vdm_jax.commands.main"]
CAPTION = "a green 7 bouncing"
GOALS = {"help": 0.1, "import": 0.1, "list": 0.5, "first sample, cold": 20.0, "first sample, warm": 5.0}  # wall seconds
REPEATED = 5
# Config, stage and what: the demo's stages, the cascade that ships, and a published network.
PROGRAMS = [*(("captioned_digits", stage, "train") for stage in ("base", "spatial_1", "spatial_2")),
            *(("captioned_digits_full", stage, what) for stage in ("spatial_1",) for what in ("train", "sample")),
            ("vdm/bair", "base", "train")]


def measured(command: list[str], **environment: str) -> dict[str, Any]:
    """One process, from its start to its end. Raises `RuntimeError` for one that fails."""
    before, start = busy_seconds(), time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)} failed: {output.decode()[-2000:]}")
    cpu, row = usage.ru_utime + usage.ru_stime, {}
    if before is not None and wall > 0.3:  # ticks of the system's counters are 10 ms
        others = max(0.0, busy_seconds() - before - cpu) / ((os.cpu_count() or 1) * wall)
        row["others_share"] = round(others, 2)
    # A process begins as a copy of this one, whose memory counts towards its peak.
    known = usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = usage.ru_maxrss // 1024 if known else None
    return {"wall": round(wall, 3), "cpu": round(cpu, 3), "peak_mib": peak, **row}


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the median processor seconds, with the least wall seconds of all and their number."""
    row = sorted(rows, key=lambda row: row["cpu"])[len(rows) // 2]
    return {**row, "least_wall": min(row["wall"] for row in rows), "repetitions": len(rows)}


def commands() -> dict[str, Any]:
    """The commands of a first session."""
    rows = {name: median([measured(command) for _ in range(REPEATED)]) for name, command in {
        "help": [*VDM_JAX, "--help"], "import": [sys.executable, "-c", "import vdm_jax"],
        "list": [*VDM_JAX, "list"]}.items()}
    with tempfile.TemporaryDirectory() as folder:
        sample = [*VDM_JAX, "sample", "captioned_digits_full", CAPTION, "--out", f"{folder}/x.gif"]
        again = [measured(sample, JAX_COMPILATION_CACHE_DIR=f"{folder}/cache") for _ in range(4)]
        eight = [measured([*sample, "--count", "8"], JAX_COMPILATION_CACHE_DIR=f"{folder}/cache") for _ in range(2)]
    rows["first sample, cold"], rows["first sample, warm"] = median(again[:1]), median(again[1:])
    rows["8 videos, cold"], rows["8 videos, warm"] = (median([row]) for row in eight)
    return rows


def compilations(rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Programs of configs, compiled without a cache for one device of this CPU: `rows` and one more each time, without
    those that are there."""
    for config, stage, what in PROGRAMS:
        if f"{config} {stage} {what}" in rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [*VDM_JAX, "compile", config, "--stage", stage, "--what", what, "--out", str(report)]
            row = measured(command, VDM_JAX_PLANS=folder)
            found = json.loads(report.read_text())
        about = {name: found[name] for name in ("parameters", "batch", "trace_seconds", "compile_seconds")}
        rows = {**rows, f"{config} {stage} {what}": {**row, **about}}
        yield rows


def demo(run: Path) -> dict[str, Any]:
    """How fast the stages of a run were trained, by the lines that training wrote. Raises `UserError` where there are
    none."""
    rows = {}
    for stage in read_cascade(run).stages:
        path = run / stage.name / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        last = lines[-1]["step"] if lines else 0
        lines = [line for line in lines if "clips_per_second" in line]
        if len(lines) < 2:
            raise UserError(f"{path} has {len(lines)} lines with a speed; permitted: those of a training, such as make "
                            "demo does", "end_to_end.demo")
        rows[stage.name] = {
            "video": str(stage.video), "batch": stage.training.batch_size, "steps": last,
            "clips_per_second": round(statistics.median(line["clips_per_second"] for line in lines), 1),
            "waiting": round(statistics.median(line["data_wait_ms"] / line["step_ms"] for line in lines), 3)}
    return rows


def record(name: str, rows: Mapping[str, Any]) -> None:
    """Write a record, with what it was made on."""
    found = {"rows": rows, "device": describe(jax.devices("cpu")[0], 1), "versions": versions(),
             "date": datetime.date.today().isoformat()}
    with atomic_path(RESULTS / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")


def made_on(found: Mapping[str, Any]) -> str:
    """Where and when, and how busy the machine was."""
    shares = [row["others_share"] for row in found["rows"].values() if row.get("others_share") is not None]
    busy = f" Other processes took {statistics.median(shares):.0%} of the machine in the median row." if shares else ""
    device = found["device"]
    return (f"Device: {device['kind']}, {device['cores']} cores, {found['date']}; "
            f"{', '.join(f'{name} {version}' for name, version in found['versions'].items())}.{busy}")


def commands_table(found: Mapping[str, Any]) -> str:
    """Rows of `commands`."""
    lines = ["| command | processor, s | wall, s | least wall, s | goal, wall s | peak, MiB |",
             "|---|---:|---:|---:|---:|---:|"]
    for name, row in found["rows"].items():
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:,}"
        lines.append(f"| {name} | {row['cpu']:.2f} | {row['wall']:.2f} | {row['least_wall']:.2f} | "
                     f"{GOALS.get(name, '-')} | {peak} |")
    return "\n".join([*lines, "", made_on(found)])


def compile_table(found: Mapping[str, Any]) -> str:
    """Rows of `compilations`."""
    lines = ["| config, stage | program | parameters | batch | tracing, s | compiling, s | processor, s | peak, MiB |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]
    for name, row in found["rows"].items():
        place, _, what = name.rpartition(" ")
        lines.append(f"| {place} | {what} | {row['parameters'] / 1e6:.2f} M | {row['batch']} | "
                     f"{row['trace_seconds']} | {row['compile_seconds']} | {row['cpu']:.1f} | {row['peak_mib']:,} |")
    return "\n".join([*lines, "", made_on(found)])


def demo_table(found: Mapping[str, Any]) -> str:
    """Rows of `demo`."""
    lines = ["| stage | makes | batch | steps | clips per second | of a step, waiting for data |",
             "|---|---|---:|---:|---:|---:|"]
    lines += [f"| {name} | {row['video']} | {row['batch']} | {row['steps']:,} | {row['clips_per_second']} | "
              f"{row['waiting']:.0%} |" for name, row in found["rows"].items()]
    return "\n".join([*lines, "", f"{made_on(found)} Medians of the lines that training on this machine "
                      "wrote, a device for each core."])


TABLES = {"commands": commands_table, "compile": compile_table, "demo": demo_table}


def report() -> None:
    """The tables of all records that exist, in docs/performance.md."""
    text = PAGE.read_text()
    for name, table in TABLES.items():
        if (path := RESULTS / f"{name}.json").exists():
            text = insert(text, f"end_to_end_{name}", table(json.loads(path.read_text())))
    with atomic_path(PAGE) as temporary:
        temporary.write_text(text)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in (*TABLES, "report"):
        raise SystemExit(f"{arguments} is not valid; permitted: one of {', '.join(TABLES)}, report")
    if arguments[0] == "commands":
        record("commands", commands())
    elif arguments[0] == "compile":
        path = RESULTS / "compile.json"
        for rows in compilations(json.loads(path.read_text())["rows"] if path.exists() else {}):
            record("compile", rows)
    elif arguments[0] == "demo":
        record("demo", demo(ROOT / "runs" / "captioned_digits"))
    report()


if __name__ == "__main__":
    main(sys.argv[1:])
