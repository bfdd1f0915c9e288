"""Table and plot of the record, into README.md.

Run:  python -m experiments.few_steps.report
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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


def pooled(rows: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """Mean of a score over the clips of all seeds, and half of its 95 % interval (normal)."""
    parts = [row["scores"][name] for row in rows]
    clips = sum(part["clips"] for part in parts)
    mean = sum(part["mean"] * part["clips"] for part in parts) / clips
    square = sum((part["variance"] + part["mean"] ** 2) * part["clips"] for part in parts) / clips
    return mean, Z * math.sqrt(max(square - mean**2, 0) / clips)


def mean_of(rows: list[dict[str, Any]], name: str) -> float:
    """Mean of a number over seeds."""
    return sum(row[name] for row in rows) / len(rows)


def table(rows: Rows) -> str:
    """A line for each method and number of steps."""
    lines = ["| method | steps | evaluations | whole | digit | motion | diversity | ms per video | training steps |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for (method, steps), of in rows.items():
        scores = ["{:.3f} ± {:.3f}".format(*pooled(of, name)) for name in ("whole", "digit", "motion")]
        updates = of[0]["updates"] or "-"
        lines.append(f"| {method} | {steps} | {of[0]['evaluations']} | {' | '.join(scores)} | "
                     f"{mean_of(of, 'diversity'):.3f} | {mean_of(of, 'ms_per_video'):.1f} | {updates} |")
    return "\n".join(lines)


def goals(rows: Rows) -> str:
    """What the best method keeps of the teacher, against what was to be reached."""
    teacher = next((of for (method, _), of in rows.items() if method == TEACHER), None)
    if teacher is None:
        return "The teacher is not measured yet."
    whole, milliseconds = pooled(teacher, "whole")[0], mean_of(teacher, "ms_per_video")
    lines = ["| steps | best | whole, share of the teacher's | goal | times faster | goal |",
             "|---:|---|---:|---:|---:|---:|"]
    for steps, share, faster in GOALS:
        found = {method: of for (method, count), of in rows.items() if count == steps and method != TEACHER}
        if not found:
            continue
        best = max(found, key=lambda method: pooled(found[method], "whole")[0])
        kept = pooled(found[best], "whole")[0] / whole if whole else math.nan
        speed = milliseconds / mean_of(found[best], "ms_per_video")
        lines.append(f"| {steps} | {best} | {kept:.2f} | >= {share} | {speed:.1f} | >= {faster} |")
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
        scores, margins = zip(*(pooled(of, "whole") for _, of in points), strict=True)
        for axes, places in ((by_steps, [steps for steps, _ in points]),
                             (by_time, [mean_of(of, "ms_per_video") for _, of in points])):
            axes.errorbar(places, scores, margins, marker="o", capsize=2, label=method)
    for axes, label in ((by_steps, "steps of every stage"), (by_time, "ms per video")):
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
    return (f"{protocol['experiment']}, {protocol['captions']} test captions with each of the seeds "
            f"{', '.join(map(str, seeds))}; means over clips with 95 % intervals. Diversity is the root mean squared "
            f"distance of two of {protocol['samples']} samples of one of {protocol['alike']} captions, pixels in "
            f"[0, 1]; real clips of different captions are {apart:.3f} apart. Progressive students: "
            f"{protocol['updates']} training steps per round; consistency: {protocol['consistency_updates']} per stage."
            f" `{record['command']}` on {device['kind']}, {device['cores']} cores; {used}. Recorded {record['date']}.")


if __name__ == "__main__":
    main()
