"""Tables and plots of the scaling records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.readme_tables import insert
from experiments.scaling.cases import BASES, Case, cases
from vdm_jax.benchmark.plots import picture
from vdm_jax.benchmark.record import load
from vdm_jax.planning.chips import CHIPS
from vdm_jax.video.writing import atomic_path

GIB = 2**30
Row = dict[str, Any]
TITLES = {"weak": "Weak scaling: as many clips for every chip", "strong": "Strong scaling: one batch over more chips"}
TABLES = ("even", *TITLES)
NAMES = {"imagen_video/cascade": "Imagen Video's base", "imagen_video/full_attention": "its base, full attention",
         "svd/image_to_video_14": "Stable Video Diffusion", "nuwa_xl/flintstones": "NUWA-XL"}
PAGE = Path(__file__).parent.parent.parent / "docs" / "performance.md"


def write_report(path: Path, readme: Path, page: Path | None = None) -> None:
    """Put the tables and plots of the record at `path`, and of the records next to it, between the markers of
    README.md, and the rows of pods into `page`."""
    text = readme.read_text()
    if path.exists():
        found = load(path)
        # What the compiler could not compile for want of something else than memory is shown as counted from shapes
        rows = {name: row for name, row in found["rows"].items() if not without_program(row)}
        for study in TABLES:
            text = insert(text, study, scaling_tables(study, rows, found.get("shapes", {})))
        for study in TITLES:
            if picture := draw(study, {**found.get("shapes", {}), **rows}, path.parent / f"{study}.png"):
                text = insert(text, f"{study}_plot", f"![{TITLES[study]}]({picture.relative_to(readme.parent)})")
        text = insert(text, "mesh", mesh_table(rows, found.get("shapes", {})))
        text = insert(text, "last", last_table(rows))
        text = insert(text, "long", long_table(rows))
        text = insert(text, "compiling", compiling_table(rows))
        text = insert(text, "protocol", protocol(found))
        if page is not None:
            table = pods_table(rows, found.get("shapes", {}))
            with atomic_path(page) as temporary:
                temporary.write_text(insert(page.read_text(), "pods", f"{table}\n\n{protocol(found).splitlines()[0]}"))
    for name, table in {"cpu": cpu_table, "scan": scan_table, "overlap": overlap_table, "sums": sums_table}.items():
        if (record := path.parent / f"{name}.json").exists():
            text = insert(text, name, table(json.loads(record.read_text())))
    with atomic_path(readme) as temporary:
        temporary.write_text(text)


def recorded(study: str, rows: dict[str, Row]) -> list[tuple[Case, Row | None]]:
    """The cases of a study with their rows; None where nothing is recorded."""
    chosen = sorted((case for case in cases() if case.study == study), key=lambda c: (c.generation, c.chips))
    return [(case, rows.get(case.name)) for case in chosen]


def twin(case: Case, rows: dict[str, Row]) -> Row | None:
    """A compiled program that differs in the kind and number of chips alone, not in what one chip does: that of the
    nearest number."""
    same = [other for other in cases() if other.program == case.program
            and rows.get(other.name, {}).get("status") == "compiled"]
    return rows[min(same, key=lambda other: abs(other.chips - case.chips)).name] if same else None


def without_program(row: Row) -> bool:
    """Whether the compiler gave up on a program, and not for want of memory."""
    return row["status"].startswith("out of ") and row["verdict"] == "unknown"


def scaling_tables(study: str, rows: dict[str, Row], shapes: dict[str, Row]) -> str:
    """A table per network: what each slice needs, and its roofline."""
    parts = []
    for base in BASES:
        mine = [(case, row) for case, row in recorded(study, rows)
                if (case.config, case.stage) == (base.config, base.stage)]
        if not mine:
            continue
        lines = [f"**{base.config}, {base.stage}**", "",
                 "| chips | batch | mesh (data x fsdp) | memory per chip, GiB | state per chip, GiB (of an "
                 "even share) | step at least, s | MFU at most | limited by | sent per chip and step, GiB |",
                 "|---|---:|---|---|---|---:|---:|---|---:|"]
        left, unknown = [], []
        for case, row in mine:
            if row is None:
                left.append(case.topology)
                row = shapes.get(case.name)
            if row is None:
                unknown.append(case.topology)
                continue
            parts_of = f" in {case.accumulation}" if case.accumulation > 1 else ""
            lines.append(f"| {case.topology} ({case.chips}) | {case.batch}{parts_of} | {case.mesh[0]} x {case.mesh[1]} "
                         "| " + " | ".join(scaling_cells(row, twin(case, rows))) + " |")
        parts += lines if len(lines) > 4 else lines[:1]
        said = [f"Not compiled: {', '.join(left)}"] if left else []
        said += [f"not counted from shapes either: {', '.join(unknown)}"] if unknown else []
        parts += ["", *([f"{'; '.join(said)}.", ""] if said else [])]
    return "\n".join(parts).rstrip()


def mesh_table(rows: dict[str, Row], shapes: dict[str, Row]) -> str:
    """Meshes and recomputation on 256 chips, for each network and slice the fastest by the bound first."""
    lines = ["| network | slice | mesh (data x fsdp) | remat | memory per chip, GiB | step at least, s | MFU at most | "
             "sent per chip, GiB |", "|---|---|---|---|---|---:|---:|---:|"]
    found = [(case, row) for case, row in recorded("mesh", {**shapes, **rows}) if row and row.get("roofline")]
    names = list(NAMES)
    for case, row in sorted(found, key=lambda pair: (names.index(pair[0].config), pair[0].generation,
                                                     pair[1]["roofline"]["step_seconds"], pair[0].mesh[1])):
        memory, _, step, mfu, _, sent = scaling_cells(row, twin(case, rows))
        lines.append(f"| {NAMES[case.config]} | {case.topology} | {case.mesh[0]} x {case.mesh[1]} | "
                     f"{case.remat or 'full'} | {memory} | {step} | {mfu} | {sent} |")
    return "\n".join(lines)


def pods_table(rows: dict[str, Row], shapes: dict[str, Row]) -> str:
    """The bases on 256 and 1,024 chips, with the time of the links alone where the traffic is that of a program."""
    lines = ["| network | chips | clips per step | mesh (data x fsdp) | memory per chip, GiB | step at least, s | "
             "MFU at most | sent per chip, GiB | links alone, s |", "|---|---|---:|---|---|---:|---:|---:|---:|"]
    for case, row in recorded("weak", {**shapes, **rows}):
        if row is None or case.chips < 256 or row["status"] == "refused":
            continue
        like = twin(case, rows)
        memory, _, step, mfu, _, sent = scaling_cells(row, like)
        links = ""
        if like is not None:
            bytes_sent = sum(one["sent"] for one in like["collectives"])
            links = f"{bytes_sent / CHIPS[case.generation].links:.3f}"
        lines.append(f"| {NAMES[case.config]} | {case.topology} ({case.chips}) | {case.batch} | {case.mesh[0]} x "
                     f"{case.mesh[1]} | {memory} | {step} | {mfu} | {sent} | {links} |")
    return "\n".join(lines)


def scaling_cells(row: Row, like: Row | None = None) -> list[str]:
    """Memory, state, step time, MFU, limit and traffic; of a row that was only counted from shapes, memory and traffic
    of the program `like` it, or the least that they are."""
    if row["status"] == "refused":
        return [row["reason"], "", "", "", "", ""]
    state = sum(row["state"].values())
    holders = row["mesh"]["fsdp"] * row["mesh"]["tensor"] * row["mesh"]["context"]  # chips that share one copy
    share = state / (16 * row["parameters"] / holders)  # float32 parameters, two moments and an average
    counted, source = row["status"] == "from shapes", row
    mark = ""
    if counted and like is not None:
        source, mark = like, " ‡"
    elif counted:
        source = {"memory": {"needed": row["least"]}, "collectives": [{"sent": row["moved"]["sent"]}]}
    needed = source.get("memory", {}).get("needed")
    memory = f"{needed / GIB:.1f} of {row['capacity'] / GIB:.1f}{mark}" if needed else row["status"]
    if row["verdict"] == "does not fit" if not counted else needed > row["capacity"]:
        memory += ", does not fit"
    at_least = "at least " if counted and like is None else ""
    roof, sent = row["roofline"], sum(c["sent"] for c in source["collectives"])
    kept = f"{state / GIB:.2f} ({share:.3f})"
    if roof is None:
        return [at_least + memory, kept, "", "", "", ""]
    sums = " †" if source.get("warnings") else ""
    return [at_least + memory, kept, f"{roof['step_seconds']:.3f}", f"{roof['mfu']:.0%}", roof["limited_by"],
            f"{at_least}{sent / GIB:.1f}{sums}{mark}"]


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


def long_table(rows: dict[str, Row]) -> str:
    """Long videos: segments over chips, and one clip over chips."""
    lines = ["| network | slice | clips x frames | split | program | memory per chip, GiB | call or step at least, s | "
             "limited by | sent per chip, GiB |", "|---|---|---|---|---|---|---:|---|---:|"]
    left = []
    for case, row in recorded("long", rows):
        if row is None:
            left.append(case.name)
            continue
        memory, _, seconds, _, limit, sent = scaling_cells(row)
        frames, split = case.plan().stage.video.frames, "frames" if case.mesh[3] > 1 else "clips"
        lines.append(f"| {NAMES[case.config]} | {case.topology} ({case.chips}) | {case.batch} x {frames} | {split} | "
                     f"{case.what} | {memory} | {seconds} | {limit} | {sent} |")
    return "\n".join([*lines, *(["", f"Not compiled yet: {', '.join(left)}."] if left else [])])


def compiling_table(rows: dict[str, Row]) -> str:
    """What the compiler itself takes, of the programs whose memory is recorded."""
    lines = ["| network | chips | batch | data x fsdp x tensor x context | remat | tracing, s | compiling, s | memory "
             "of the compiler, GiB |", "|---|---|---:|---|---|---:|---:|---:|"]
    shown = {case.name: case for case in cases() if "compiler_gib" in rows.get(case.name, {})}
    for name, case in sorted(shown.items(), key=lambda pair: -rows[pair[0]]["compiler_gib"]):
        row, parts = rows[name], f" in {case.accumulation}" if case.accumulation > 1 else ""
        taken = f"{row['trace_seconds']:.0f} | {row['compile_seconds']:.0f} | {row['compiler_gib']:.1f}"
        mesh = " x ".join(map(str, case.mesh))
        lines.append(f"| {NAMES[case.config]} | {case.topology} ({case.chips}) | {case.batch}{parts} | {mesh} | "
                     f"{row['remat']} | {taken} |")
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


def overlap_table(record: Row) -> str:
    """Gathers that go on while something is computed."""
    lines = ["| slice | mesh (data x fsdp) | effort | flags | gathers | while something is computed | instructions in "
             "between | estimated cycles in between |", "|---|---|---|---|---:|---:|---:|---:|"]
    for row in record["rows"]:
        found, mesh = row["gathers"], row["mesh"]
        hidden = found.get("overlapped", 0)
        between = [f"{found[name] / hidden:,.0f}" if hidden else "" for name in ("distance", "cycles")]
        lines.append(f"| {row['slice']} | {mesh['data']} x {mesh['fsdp']} | {row['effort']} | "
                     f"{row['flags'] or 'none'} | {found['count']} | {hidden} | {between[0]} | {between[1]} |")
    about = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    chain = record["chain"]
    return "\n".join([*lines, "", f"{chain['layers']} recomputed layers `x + silu(x) W` of {chain['channels']} "
                      f"channels, {chain['tokens']} tokens, {chain['clips']} clips per chip, and their gradient. "
                      f"{about}. Recorded {record['date']}."])


def sums_table(record: Row) -> str:
    """How weights are gathered and gradients summed, by slice, share and rows of a shard."""
    lines = ["| slice | chips that share the weights | rows per chip | weights | gradients |", "|---|---|---:|---|---|"]
    for row in record["rows"]:
        sent, whole = row["bytes"], row["weights"]
        weights = "gathered" if sent.get("all-gather", 0) >= whole else "summed"
        gradients = "scattered" if sent.get("reduce-scatter", 0) >= whole else "summed whole"
        all_of = " (all of a slice)" if row["fsdp"] == row["chips"] else ""
        lines.append(f"| {row['slice']} | {row['fsdp']}{all_of} | {row['rows']} | {weights} | {gradients} |")
    about = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"{about}. Recorded {record['date']}."])


def protocol(found: dict[str, Any]) -> str:
    """How the record was made."""
    about = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join([f"{about}. Recorded {found['date']}.", "",
                      *(f"- {name}: {text}" for name, text in found["protocol"].items())])


def draw(study: str, rows: dict[str, Row], path: Path) -> Path | None:
    """Step time, state and MFU against chips; None where nothing that fits has two sizes."""
    series: dict[str, list[tuple[int, Row]]] = {}
    for case, row in recorded(study, rows):
        if row is not None and row.get("roofline"):
            kind = NAMES[case.config]
            series.setdefault(f"{case.generation}, {kind}", []).append((case.chips, row))
    if not any(len(points) > 1 for points in series.values()):
        return None
    panels = {"seconds per step, at least": lambda row: row["roofline"]["step_seconds"],
              "state, GiB per chip": lambda row: sum(row["state"].values()) / GIB,
              "MFU, at most": lambda row: row["roofline"]["mfu"]}
    title = f"{TITLES[study]}, from the compiler and published peaks"
    picture(series, panels, "chips", title, path, linear=("MFU, at most",))
    return path
