"""Tables, plot and pictures of the comparison of cascades."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from experiments.readme_tables import insert
from vdm_jax.benchmark.record import load
from vdm_jax.benchmark.report import footer
from vdm_jax.digits.scorer import COLUMNS
from vdm_jax.video.writing import atomic_path

GENERATED = "generated"
Rows = list[dict[str, Any]]


def write_report(path: Path, readme: Path) -> None:
    """Put a record between the markers of its name in README.md; nothing where there is no record."""
    if not path.exists():
        return
    record = load(path)
    if record["rows"]:
        draw(list(record["rows"].values()), path.with_suffix(".png"))
    readme.write_text(insert(readme.read_text(), path.stem, body(record, path)))


def body(record: dict[str, Any], path: Path) -> str:
    """What stands between the markers."""
    rows = list(record["rows"].values())
    shown = [f"![scores]({path.parent.name}/{path.stem}.png)"] if rows else []
    shown += [table(rows), stages(rows)]
    for row in rows:
        name = row["system"]
        shown += [f"{name}:\n\n![{name}]({path.parent.name}/{file})" for file in row.get("pictures", ())]
    return "\n\n".join([*shown, footer(record)])


def by_system(rows: Rows) -> dict[str, Rows]:
    """Rows of the seeds of each system."""
    return {name: [row for row in rows if row["system"] == name] for name in dict.fromkeys(r["system"] for r in rows)}


def values(rows: Rows, attribute: str) -> list[float]:
    """What the seeds of a system score."""
    return [row["scores"][GENERATED][attribute] for row in rows]


def mean_and_range(found: list[float]) -> str:
    """The mean over seeds, and from where to where they go."""
    mean = f"{statistics.mean(found):.2f}"
    return mean if len(found) == 1 else f"{mean} ({min(found):.2f} to {max(found):.2f})"


def table(rows: Rows) -> str:
    """Scores of generated videos by system, and of real ones."""
    lines = ["| system | seeds | stages | TFLOP | " + " | ".join(COLUMNS) + " |",
             "|---|---:|---:|---:|" + "---:|" * len(COLUMNS)]
    for name, own in by_system(rows).items():
        total = sum(stage["flops"] for stage in own[0]["stages"]) / 1e12
        lines.append(f"| {name} | {len(own)} | {len(own[0]['stages'])} | {total:.1f} | " +
                     " | ".join(mean_and_range(values(own, a)) for a in COLUMNS) + " |")
    for name, found in rows[0]["scores"].items() if rows else ():
        if name != GENERATED:
            lines.append(f"| {name} | | | | " + " | ".join(f"{found[a]:.2f}" for a in COLUMNS) + " |")
    return "\n".join(lines)


def stages(rows: Rows) -> str:
    """What every stage was trained for."""
    lines = ["| system | run | stage | video | steps | clips per step | TFLOP |", "|---|---|---|---|---:|---:|---:|"]
    lines += [f"| {name} | {one['run']} | {one['stage']} | {one['video']} | {one['steps']} | {one['clips']} | "
              f"{one['flops'] / 1e12:.1f} |" for name, own in by_system(rows).items() for one in own[0]["stages"]]
    return "\n".join(lines)


def draw(rows: Rows, path: Path) -> None:
    """Mean scores as bars, one group per attribute, and a dot for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    systems = by_system(rows)
    axis, width = figure.subplots(), 0.8 / max(len(systems), 1)
    for i, (name, own) in enumerate(systems.items()):
        places = [x + (i - (len(systems) - 1) / 2) * width for x in range(len(COLUMNS))]
        found = [values(own, a) for a in COLUMNS]
        axis.bar(places, [statistics.mean(one) for one in found], width, label=name)
        axis.plot([x for x, one in zip(places, found, strict=True) for _ in one], [y for one in found for y in one],
                  ".", color="black", markersize=4)
    axis.set_xticks(range(len(COLUMNS)), COLUMNS)
    axis.set(ylabel="share of clips or digits right", ylim=(0, 1.02))
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
