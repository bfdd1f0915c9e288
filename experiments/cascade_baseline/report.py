"""Tables, plot and pictures of the comparison of cascades."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.readme_tables import insert
from vdm_jax.benchmark.record import load
from vdm_jax.benchmark.report import footer
from vdm_jax.digits.scorer import COLUMNS
from vdm_jax.video.writing import atomic_path

GENERATED = "generated"


def write_report(path: Path, readme: Path) -> None:
    """Put a record between the markers of its name in README.md; nothing where there is no record."""
    if not path.exists():
        return
    record = load(path)
    body = [table(record["rows"]), stages(record["rows"])]
    if record["rows"]:
        picture = path.with_suffix(".png")
        draw(record["rows"], picture)
        body.insert(0, f"![scores]({picture.relative_to(readme.parent).as_posix()})")
        for name, row in record["rows"].items():
            body.append("\n\n".join(f"{name}:\n\n![{name}]({path.parent.name}/{file})" for file in row["pictures"]))
    if "extension" in record:
        body.append(extension(record["extension"]))
    text = insert(readme.read_text(), path.stem, "\n\n".join([*body, footer(record)]))
    readme.write_text(text)


def table(rows: dict[str, Any]) -> str:
    """Scores of generated videos by system, and of real ones."""
    lines = ["| system | stages | " + " | ".join(COLUMNS) + " | training, s |",
             "|---|---:|" + "---:|" * (len(COLUMNS) + 1)]
    for name, row in rows.items():
        found = row["scores"][GENERATED]
        lines.append(f"| {name} | {len(row['stages'])} | " + " | ".join(f"{found[a]:.2f}" for a in COLUMNS) +
                     f" | {row['train_seconds']:.0f} |")
    if rows:
        for name, found in next(iter(rows.values()))["scores"].items():
            if name != GENERATED:
                lines.append(f"| {name} | | " + " | ".join(f"{found[a]:.2f}" for a in COLUMNS) + " | |")
    return "\n".join(lines)


def stages(rows: dict[str, Any]) -> str:
    """What every stage was trained for."""
    lines = ["| system | run | stage | video | steps | clips per step | TFLOP |", "|---|---|---|---|---:|---:|---:|"]
    lines += [f"| {name} | {one['run']} | {one['stage']} | {one['video']} | {one['steps']} | {one['clips']} | "
              f"{one['flops'] / 1e12:.1f} |" for name, row in rows.items() for one in row["stages"]]
    return "\n".join(lines)


def extension(found: dict[str, Any]) -> str:
    """Guidance against replacement."""
    floor = found["fvd of other real clips"]["value"]
    lines = [f"{found['clips']} videos of {found['frames']} frames by the VDM-style model of 16, in blocks that know 8 "
             f"frames of the block before. FVD (protocol `original`) of {found['windows']} windows of 16 frames across "
             f"seams to as many real clips; other real clips have {floor:.0f}, so few clips make it large:", "",
             "| method | change from frame to frame at seams, over elsewhere (1 is right) | FVD (95 % interval) | "
             "count, last block | colour, last block | seconds |", "|---|---:|---:|---:|---:|---:|"]
    for name, row in found["methods"].items():
        last, score = row["last block"], row["fvd"]
        low, high = score["interval"]["low"], score["interval"]["high"]
        lines.append(f"| {name} | {row['change at seams']:.2f} | {score['value']:.0f} ({low:.0f} to {high:.0f}) | "
                     f"{last['count']:.2f} | {last['colour']:.2f} | {row['seconds']:.0f} |")
    for name in found["methods"]:
        slug = name.replace(" ", "_").replace(",", "")
        lines += ["", f"Every fourth frame, {name}:", "", f"![{name}](results/extension_{slug}.png)"]
    return "\n".join(lines)


def draw(rows: dict[str, Any], path: Path) -> None:
    """Scores as bars, one group per attribute."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis, width = figure.subplots(), 0.8 / max(len(rows), 1)
    for i, (name, row) in enumerate(rows.items()):
        values = [row["scores"][GENERATED][a] for a in COLUMNS]
        axis.bar([x + (i - (len(rows) - 1) / 2) * width for x in range(len(COLUMNS))], values, width, label=name)
    axis.set_xticks(range(len(COLUMNS)), COLUMNS)
    axis.set(ylabel="share of clips or digits right", ylim=(0, 1))
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
