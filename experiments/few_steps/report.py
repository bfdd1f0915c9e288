"""Table and plot of the record, into README.md.

Run:  python -m experiments.few_steps.report
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from experiments.few_steps.run import TEACHER
from experiments.readme_tables import insert
from vdm_jax.benchmark.record import load
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
README, RECORD = FOLDER / "README.md", FOLDER / "results" / "digits.json"
Z = 1.96  # of a 95 % interval
# (steps, least share of the teacher's whole captions, least speed-up)
GOALS = ((4, 0.95, 8), (1, 0.8, 20))
Rows = dict[tuple[str, int], list[dict[str, Any]]]  # (method, steps) -> rows of all seeds


def main() -> None:
    """Rewrite what stands between the markers."""
    record = load(RECORD)
    draw(grouped(record), RECORD.with_suffix(".png"))
    text = README.read_text()
    for name, body in bodies(record).items():
        text = insert(text, name, body)
    with atomic_path(README) as temporary:
        temporary.write_text(text)


def bodies(record: dict[str, Any]) -> dict[str, str]:
    """What stands between the markers."""
    rows = grouped(record)
    return {"table": table(rows), "goals": goals(rows), "made": made(record)}


def grouped(record: dict[str, Any]) -> Rows:
    """The rows of each method and number of steps."""
    found: Rows = {}
    for row in record["rows"].values():
        found.setdefault((row["method"], row["steps"]), []).append(row)
    return found


def pooled(rows: list[dict[str, Any]], name: str) -> tuple[float, float, float]:
    """Mean of a score in [0, 1] over the clips of all seeds, whose captions differ, and its 95 % interval: Wilson's
    (1927), with the variance of the clips in place of p (1 - p). It has a width where all clips score alike."""
    mean, variance, clips = moments(rows, name)
    shrunk = 1 + Z**2 / clips
    centre, half = mean + Z**2 / (2 * clips), Z * math.sqrt(variance / clips + (Z / (2 * clips)) ** 2)
    return mean, (centre - half) / shrunk, (centre + half) / shrunk


def moments(rows: list[dict[str, Any]], name: str) -> tuple[float, float, int]:
    """Mean and variance of a score over the clips of all seeds, and their number."""
    parts = [row["scores"][name] for row in rows]
    clips = sum(part["clips"] for part in parts)
    mean = sum(part["mean"] * part["clips"] for part in parts) / clips
    square = sum((part["variance"] + part["mean"] ** 2) * part["clips"] for part in parts) / clips
    return mean, max(square - mean**2, 0), clips


def kept_of(rows: list[dict[str, Any]], teacher: list[dict[str, Any]]) -> tuple[float, float]:
    """Share of the teacher's whole captions that a method keeps, and half of its 95 % interval, to first order and as
    if both had other captions: with the same ones it is narrower."""
    (mean, variance, clips), (of, spread, count) = moments(rows, "whole"), moments(teacher, "whole")
    if not of:
        return math.nan, math.nan
    return mean / of, Z * math.sqrt(variance / clips + (mean / of) ** 2 * spread / count) / of


def mean_of(rows: list[dict[str, Any]], name: str) -> float:
    """Mean of a number over seeds."""
    return sum(row[name] for row in rows) / len(rows)


def milliseconds(rows: list[dict[str, Any]]) -> float:
    """Per video: the median over seeds, between which all methods without training have a turn."""
    return statistics.median(row["ms_per_video"] for row in rows)


def table(rows: Rows) -> str:
    """A line for each method and number of steps."""
    lines = ["| method | steps | evaluations | whole | digit | motion | diversity | ms per video | training steps |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for (method, steps), of in rows.items():
        scores = ["{:.3f} ({:.2f} to {:.2f})".format(*pooled(of, name)) for name in ("whole", "digit", "motion")]
        updates = of[0]["updates"] or "-"
        lines.append(f"| {method} | {steps} | {of[0]['evaluations']} | {' | '.join(scores)} | "
                     f"{mean_of(of, 'diversity'):.3f} | {milliseconds(of):.1f} | {updates} |")
    return "\n".join(lines)


def goals(rows: Rows) -> str:
    """What the best method keeps of the teacher, against what was to be reached."""
    teacher = next((of for (method, _), of in rows.items() if method == TEACHER), None)
    if teacher is None:
        return "The teacher is not measured yet."
    lines = ["| steps | best | whole, share of the teacher's | goal | times faster | goal |",
             "|---:|---|---:|---:|---:|---:|"]
    for steps, share, faster in GOALS:
        found = {method: of for (method, count), of in rows.items() if count == steps and method != TEACHER}
        if not found:
            continue
        best = max(found, key=lambda method: pooled(found[method], "whole")[0])
        kept, half = kept_of(found[best], teacher)
        speed = milliseconds(teacher) / milliseconds(found[best])
        lines.append(f"| {steps} | {best} | {kept:.2f} ± {half:.2f} | >= {share} | {speed:.1f} | >= {faster} |")
    return "\n".join(lines)


def draw(rows: Rows, path: Path) -> None:
    """Whole captions against steps, and against time, a line for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    by_steps, by_time = figure.subplots(1, 2)
    for method in dict.fromkeys(name for name, _ in rows):
        points = sorted((steps, of) for (name, steps), of in rows.items() if name == method)
        scores, lows, highs = np.array([pooled(of, "whole") for _, of in points]).T
        margins = np.maximum([scores - lows, highs - scores], 0)
        for axes, places in ((by_steps, [steps for steps, _ in points]),
                             (by_time, [milliseconds(of) for _, of in points])):
            axes.errorbar(places, scores, margins, marker="o", capsize=2, label=method)
    for axes, label in ((by_steps, "steps"), (by_time, "ms per video")):
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("share of whole captions")
    by_steps.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def made(record: dict[str, Any]) -> str:
    """How the record was made."""
    protocol, device = record["protocol"], record["device"]
    used = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    seeds = sorted({row["seed"] for row in record["rows"].values()})
    apart = mean_of(list(record["rows"].values()), "distance_of_captions")
    trained = record.get("training")
    students = "" if trained is None else (
        f" Progressive students: {trained['updates']} training steps per round; consistency: "
        f"{trained['consistency_updates']} per stage; dmd: {trained['dmd_updates']} of the critic.")
    return (f"{protocol['experiment']}, {protocol['captions']} test captions with each of the seeds "
            f"{', '.join(map(str, seeds))}, others for each; means over clips with 95 % intervals. Diversity is the "
            f"root mean squared distance of two of {protocol['samples']} samples of one of {protocol['alike']} "
            f"captions per seed, pixels in [0, 1]; real clips of different captions are {apart:.3f} apart. Times are "
            f"of batches of {protocol['batch']} videos: the median over seeds of the median over batches, without "
            f"compiling.{students} `{record['command']}` on {device['kind']}, {device['cores']} cores; {used}. "
            f"Recorded {record['date']}.")


if __name__ == "__main__":
    main()
