"""Tables and plots of the comparison of patterns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.attention_benchmark.variants import FULL, VARIANTS
from experiments.attention_benchmark.which_pattern_samples import draw_strips
from experiments.readme_tables import insert
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.benchmark.record import load
from vdm_jax.benchmark.report import footer
from vdm_jax.video.writing import atomic_path

ATTRIBUTES = ("whole", "digit", "motion")
GENERATED, CEILING = "generated", "real clips (ceiling)"
BUDGETS = {"FLOPs": "training FLOPs", "time": "training time"}
CONFIDENCE = 0.95
Rows = list[dict[str, Any]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval by Student's t; not a number for one seed."""
    from scipy.stats import t

    if len(values) < 2:
        return statistics.mean(values), math.nan
    spread = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(spread)


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Mean and interval."""
    mean, half = interval(values)
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def chosen(record: dict[str, Any], variant: str, frames: int) -> Rows:
    """The rows of all seeds."""
    return [row for row in record["rows"].values() if (row["variant"], row["frames"]) == (variant, frames)]


def loss_at(row: dict[str, Any], step: int) -> float:
    """Validation loss at a checkpoint."""
    return next(point["validation_loss"] for point in row["curve"] if point["step"] == step)


def lengths(record: dict[str, Any]) -> list[int]:
    """Frames of the clips of all rows."""
    return sorted({row["frames"] for row in record["rows"].values()})


def table(record: dict[str, Any], frames: int, budget: str) -> str:
    """Markdown: a line per pattern, at the end of one budget."""
    columns = ("steps", "time of a step (full: 1)", "memory of a step, MiB", "attention's share of FLOPs",
               "validation loss", *ATTRIBUTES, "seeds")
    lines = [f"| pattern | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name in VARIANTS:
        rows = chosen(record, name, frames)
        if not rows:
            continue
        times, steps = record["times"][str(frames)][name], rows[0]["budgets"][budget]["steps"]
        losses = [loss_at(row, steps) for row in rows]
        scores = [shown([row["budgets"][budget]["scores"][GENERATED][each] for row in rows]) for each in ATTRIBUTES]
        lines.append(f"| {name} | {steps} | {times['ratio']:.2f} | {times['bytes'] / 2**20:.0f} | "
                     f"{rows[0]['attention_share']:.2f} | {shown(losses, 4)} | {' | '.join(scores)} | {len(rows)} |")
    return "\n".join(lines)


def crossings(record: dict[str, Any]) -> str:
    """Markdown: what a train step of each pattern takes against full attention's, by the frames of a clip."""
    frames = sorted(map(int, record["times"]))
    lines = ["| pattern | " + " | ".join(f"{count} frames" for count in frames) + " |", "|---|" + "---:|" * len(frames)]
    for name in VARIANTS:
        found = [record["times"][str(count)].get(name) for count in frames]
        if name != FULL and any(found):
            lines.append(f"| {name} | " + " | ".join("-" if one is None else f"{one['ratio']:.2f}" for one in found)
                         + " |")
    return "\n".join(lines)


def draw(record: dict[str, Any], frames: int, path: Path) -> None:
    """Validation loss against FLOPs and against time, with the range of the seeds, and scores at the end of both."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    names = [name for name in VARIANTS if chosen(record, name, frames)]
    for i, name in enumerate(names):
        rows, seconds = chosen(record, name, frames), record["times"][str(frames)][name]["seconds"]
        points = [[point["validation_loss"] for point in row["curve"]] for row in rows]
        means = [interval(values) for values in zip(*points, strict=True)]
        steps = [point["step"] for point in rows[0]["curve"]]
        for panel, unit in ((panels[0, 0], rows[0]["flops_per_step"] / 1e12), (panels[0, 1], seconds)):
            x, low, high = [s * unit for s in steps], [m - h for m, h in means], [m + h for m, h in means]
            panel.plot(x, [mean for mean, _ in means], color=f"C{i}", label=name)
            panel.fill_between(x, low, high, color=f"C{i}", alpha=0.15)
        for panel, attribute in zip(panels[1], ("whole", "motion"), strict=True):
            for shift, budget in ((-0.2, "FLOPs"), (0.2, "time")):
                mean, half = interval([row["budgets"][budget]["scores"][GENERATED][attribute] for row in rows])
                panel.bar(i + shift, mean, 0.38, yerr=None if math.isnan(half) else half, capsize=3, color=f"C{i}",
                          alpha=1.0 if budget == "FLOPs" else 0.5)
    panels[0, 0].set(xlabel="training TFLOP, mask-aware", ylabel="validation loss", yscale="log")
    panels[0, 1].set(xlabel="seconds of training", ylabel="validation loss", yscale="log")
    panels[0, 0].legend(fontsize=8)
    for panel, attribute in zip(panels[1], ("whole caption", "motion"), strict=True):
        panel.set(ylabel=f"{attribute}: share right", xticks=[], ylim=(0, 1.05))
        panel.set_title("dark: equal FLOPs, light: equal time", fontsize=9)
    for panel in panels.flat:
        panel.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def body(record: dict[str, Any], folder: Path, readme: Path) -> str:
    """What stands between the markers; draws the plots into `folder`."""
    parts = []
    for frames in lengths(record):
        picture = folder / f"which_pattern_{frames}.png"
        draw(record, frames, picture)
        rows = [row for row in record["rows"].values() if row["frames"] == frames]
        ceiling = rows[0]["budgets"]["time"]["scores"][CEILING]
        samples = draw_strips(record, frames, folder)
        parts += [f"### Clips of {frames} frames",
                  f"![loss and scores]({picture.relative_to(readme.parent).as_posix()})",
                  *([] if samples is None else [
                      "The first videos of the first seed, at equal time:",
                      f"![first videos of each pattern]({samples.relative_to(readme.parent).as_posix()})"]),
                  *(f"Equal {what}:\n\n{table(record, frames, name)}" for name, what in BUDGETS.items()),
                  "Real clips of this size: " + ", ".join(f"{name} {ceiling[name]:.2f}" for name in ATTRIBUTES) + "."]
    parts += ["### Time of a train step against full attention's", crossings(record)]
    return "\n\n".join([*parts, "Means over seeds; ± is half of the 95 % interval (Student's t).", footer(record)])


def summary(record: dict[str, Any]) -> str:
    """Markdown: the shortest clips at equal time."""
    frames = lengths(record)[0]
    seeds = len({row["seed"] for row in record["rows"].values()})
    return (f"{table(record, frames, 'time')}\n\nClips of {frames} frames, everybody trained for the time of full "
            f"attention's steps; means over up to {seeds} seeds, ± half of the 95 % interval (Student's t). Recorded "
            f"{record['date']}; more in `experiments/attention_benchmark/`.")


def write_report(path: Path, readme: Path, results: Path | None = None) -> None:
    """Draw the record next to itself and put its tables between the markers of README.md, and the first into the page
    of results."""
    record = load(path)
    readme.write_text(insert(readme.read_text(), "which_pattern", body(record, path.parent, readme)))
    if results is not None:
        results.write_text(insert(results.read_text(), "patterns", summary(record)))
