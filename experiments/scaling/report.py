"""Tables and plots of the scaling records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.readme_tables import insert
from experiments.scaling.cases import BASES, Case, cases
from vdm_jax.benchmark.plots import picture
from vdm_jax.benchmark.record import load
from vdm_jax.video.writing import atomic_path

GIB = 2**30
Row = dict[str, Any]
TITLES = {"weak": "Weak scaling: 4 clips per chip", "strong": "Strong scaling: 1,024 clips per step"}
TABLES = ("even", *TITLES)


def write_report(path: Path, readme: Path) -> None:
    """Put the tables and plots of the record at `path`, and of cpu.json next to it, between the markers of
    README.md."""
    text = readme.read_text()
    if path.exists():
        found = load(path)
        rows = found["rows"]
        for study in TABLES:
            text = insert(text, study, scaling_tables(study, rows))
        for study in TITLES:
            if picture := draw(study, rows, path.parent / f"{study}.png"):
                text = insert(text, f"{study}_plot", f"![{TITLES[study]}]({picture.relative_to(readme.parent)})")
        text = insert(text, "last", last_table(rows))
        text = insert(text, "protocol", protocol(found))
    cpu = path.parent / "cpu.json"
    if cpu.exists():
        text = insert(text, "cpu", cpu_table(json.loads(cpu.read_text())))
    scan = path.parent / "scan.json"
    if scan.exists():
        text = insert(text, "scan", scan_table(json.loads(scan.read_text())))
    with atomic_path(readme) as temporary:
        temporary.write_text(text)


def recorded(study: str, rows: dict[str, Row]) -> list[tuple[Case, Row | None]]:
    """The cases of a study with their rows; None where nothing is recorded."""
    chosen = sorted((case for case in cases() if case.study == study), key=lambda c: (c.generation, c.chips))
    return [(case, rows.get(case.name)) for case in chosen]


def scaling_tables(study: str, rows: dict[str, Row]) -> str:
    """A table per network: what each slice needs, and its roofline."""
    parts = []
    for config, stage in BASES:
        mine = [(case, row) for case, row in recorded(study, rows) if (case.config, case.stage) == (config, stage)]
        lines = [f"**{config}, {stage}**", "",
                 "| chips | batch | mesh (data x fsdp) | memory per chip, GiB | state per chip, GiB (of an "
                 "even share) | step at least, s | MFU at most | limited by | sent per chip and step, GiB |",
                 "|---|---:|---|---|---|---:|---:|---|---:|"]
        lines += [f"| {case.topology} ({case.chips}) | {case.batch} | {case.mesh[0]} x {case.mesh[1]} | "
                  + " | ".join(scaling_cells(row)) + " |" for case, row in mine if row is not None]
        left = [case.topology for case, row in mine if row is None]
        parts += [*lines, "", *([f"Not compiled yet: {', '.join(left)}.", ""] if left else [])]
    return "\n".join(parts).rstrip()


def scaling_cells(row: Row) -> list[str]:
    """Memory, state, step time, MFU, limit and traffic."""
    if row["status"] == "refused":
        return [row["reason"], "", "", "", "", ""]
    state = sum(row["state"].values())
    holders = row["mesh"]["fsdp"] * row["mesh"]["tensor"] * row["mesh"]["context"]  # chips that share one copy
    share = state / (16 * row["parameters"] / holders)  # float32 parameters, two moments and an average
    needed = row.get("memory", {}).get("needed")
    memory = f"{needed / GIB:.1f} of {row['capacity'] / GIB:.1f}" if needed else row["status"]
    if row["verdict"] != "fits":
        memory += ", does not fit"
    roof, sent = row["roofline"], sum(c["sent"] for c in row["collectives"])
    kept = f"{state / GIB:.2f} ({share:.3f})"
    if roof is None:
        return [memory, kept, "", "", "", ""]
    sums = " †" if row.get("warnings") else ""
    return [memory, kept, f"{roof['step_seconds']:.3f}", f"{roof['mfu']:.0%}", roof["limited_by"],
            f"{sent / GIB:.1f}{sums}"]


def last_table(rows: dict[str, Row]) -> str:
    """What sampling a clip of the last stage needs, by slice and by what is split."""
    lines = ["| chips | split by | memory per chip, GiB | denoiser and solver steps at least, s | limited by |",
             "|---|---|---|---:|---|"]
    left = []
    for case, row in recorded("last", rows):
        if row is None:
            left.append(f"{case.topology} by {case.spread}")
            continue
        cells = scaling_cells(row)
        lines.append(f"| {case.topology} ({case.chips}) | {case.spread} | {cells[0]} | {cells[2]} | {cells[4]} |")
    if left:
        lines += ["", f"Not compiled yet: {', '.join(left)}."]
    return "\n".join(lines)


def cpu_table(record: Row) -> str:
    """Measured on virtual devices of one CPU."""
    lines = ["| devices | batch | mesh | train step, s (range) | clips/s |", "|---:|---:|---|---|---:|"]
    for row in record["rows"]:
        times = row["seconds"]
        lines.append(f"| {row['devices']} | {row['batch']} | {row['mesh']} | {times['median']:.2f} "
                     f"({times['lowest']:.2f}-{times['highest']:.2f}) | {row['batch'] / times['median']:.2f} |")
    about = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"{record['device']}; {about}. Recorded {record['date']}. {record['protocol']}"])


def scan_table(record: Row) -> str:
    """Repeated blocks unrolled or scanned."""
    lines = ["| compiled for | blocks | remat | compile, s | instructions | code, MiB | temporaries, MiB | "
             "gradient, s |", "|---|---|---|---:|---:|---:|---:|---:|"]
    for row in record["rows"]:
        where = "CPU, one device" if row["platform"] == "cpu" else f"{record['slice']}, per chip"
        seconds = f"{row['seconds']:.2f}" if "seconds" in row else ""
        lines.append(f"| {where} | {'scanned' if row['scanned'] else 'unrolled'} | {row['remat']} | "
                     f"{row['compile_seconds']} | {row['instructions']:,} | {row['code'] / 2**20:.1f} | "
                     f"{row['temporaries'] / 2**20:,.0f} | {seconds} |")
    about = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    sizes = "; ".join(f"{name}: {channels} channels, video {' x '.join(map(str, video))}"
                      for name, (channels, video) in record["sizes"].items())
    return "\n".join([*lines, "", f"{record['blocks']} blocks; {sizes}. {record['device']}; {about}. Recorded "
                      f"{record['date']}."])


def protocol(found: dict[str, Any]) -> str:
    """How the record was made."""
    about = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join([f"{about}. Recorded {found['date']}.", "",
                      *(f"- {name}: {text}" for name, text in found["protocol"].items())])


def draw(study: str, rows: dict[str, Row], path: Path) -> Path | None:
    """Step time, memory and MFU against chips; None where nothing that fits has two sizes."""
    series: dict[str, list[tuple[int, Row]]] = {}
    for case, row in recorded(study, rows):
        if row is not None and row.get("roofline"):
            kind = "full attention" if "full" in case.config else "factorised"
            series.setdefault(f"{case.generation}, {kind}", []).append((case.chips, row))
    if not any(len(points) > 1 for points in series.values()):
        return None
    panels = {"seconds per step, at least": lambda row: row["roofline"]["step_seconds"],
              "GiB per chip": lambda row: row["memory"]["needed"] / GIB,
              "MFU, at most": lambda row: row["roofline"]["mfu"]}
    title = f"{TITLES[study]}, from the compiler and published peaks"
    picture(series, panels, "chips", title, path, linear=("MFU, at most",))
    return path
