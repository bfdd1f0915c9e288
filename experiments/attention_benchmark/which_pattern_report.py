"""Table and plot of the comparison of patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.readme_tables import insert
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.benchmark.record import load
from vdm_jax.benchmark.report import footer
from vdm_jax.video.writing import atomic_path

ATTRIBUTES = ("count", "colour", "digit", "motion")
GENERATED = "generated"


def quality(row: dict[str, Any]) -> float:
    """Mean share of what the captions say that the generated videos show."""
    return sum(row["scores"][GENERATED][name] for name in ATTRIBUTES) / len(ATTRIBUTES)


def table(record: dict[str, Any]) -> str:
    """Markdown: a row per pattern."""
    lines = ["| pattern | steps | GFLOP per step | attention's share | memory of a step, MiB | validation loss | "
             + " | ".join(ATTRIBUTES) + " | mean | training, s |",
             "|---|---:|---:|---:|---:|---:|" + "---:|" * (len(ATTRIBUTES) + 2)]
    for name, row in record["rows"].items():
        scores = " | ".join(f"{row['scores'][GENERATED][attribute]:.2f}" for attribute in ATTRIBUTES)
        lines.append(f"| {name} | {row['steps']} | {row['flops_per_step'] / 1e9:.1f} | {row['attention_share']:.3f} | "
                     f"{row['train_step_bytes'] / 2**20:.0f} | {row['curve'][-1]['validation_loss']:.4f} | {scores} | "
                     f"{quality(row):.2f} | {row['train_seconds']:.0f} |")
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """Validation loss against training FLOPs; final loss and sample quality against FLOPs of a call and memory."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3)
    rows = record["rows"]
    for name, row in rows.items():
        points = row["curve"]
        panels[0, 0].plot([p["flops"] for p in points], [p["validation_loss"] for p in points], marker="o", label=name)
    panels[0, 0].set(xlabel="training FLOPs, mask-aware", ylabel="validation loss", xscale="log", yscale="log")
    panels[1, 0].axis("off")
    panels[1, 0].legend(*panels[0, 0].get_legend_handles_labels(), loc="center")
    last = [row["curve"][-1]["validation_loss"] for row in rows.values()]
    costs = {"GFLOP of a denoiser call, mask-aware": [row["forward_flops_per_clip"] / 1e9 for row in rows.values()],
             "memory of a train step, MiB": [row["train_step_bytes"] / 2**20 for row in rows.values()]}
    for line, (what, values) in enumerate({"final validation loss": last,
                                           "share of the caption shown": [quality(r) for r in rows.values()]}.items()):
        for column, (axis, at) in enumerate(costs.items(), start=1):
            for i, (x, y) in enumerate(zip(at, values, strict=True)):
                panels[line, column].plot(x, y, "o", color=f"C{i % 10}")
            panels[line, column].set(xlabel=axis, ylabel=what)
    for panel in (*panels[0], *panels[1, 1:]):
        panel.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def write_report(path: Path, readme: Path) -> None:
    """Draw the record next to itself and put its table between the markers of README.md."""
    record = load(path)
    picture = path.with_suffix(".png")
    draw(record, picture)
    ceiling = next(iter(record["rows"].values()))["scores"]
    shown = "; ".join(f"{name}: " + ", ".join(f"{a} {scores[a]:.2f}" for a in ATTRIBUTES)
                      for name, scores in ceiling.items() if name != GENERATED)
    image = f"![loss and quality against FLOPs and memory]({picture.relative_to(readme.parent).as_posix()})"
    body = "\n\n".join([image, table(record), f"For comparison, {shown}.", footer(record)])
    readme.write_text(insert(readme.read_text(), "which_pattern", body))
