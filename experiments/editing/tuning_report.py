"""The record of `tuning.py` as a table in README.md and a picture of the curves.

Run:  python -m experiments.editing.tuning_report
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.control_digits.measures import with_interval
from experiments.editing.run import FOLDER, read
from experiments.editing.tuning import KINDS
from experiments.readme_tables import insert
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.video.writing import atomic_path

RECORD, PICTURE = FOLDER / "results" / "tuning.json", FOLDER / "results" / "tuning.png"
OF_EDITS = {"whole": ("edit right", 1, 2), "trajectory_error": ("trajectory error, px", 1, 2),
            "background_change": ("background change, %", 100, 2)}  # title, factor, digits after the point
Value = Callable[[dict[str, Any]], float]


def of_edit(kind: str, name: str) -> Value:
    """What an edit scores, in the unit of its title."""
    return lambda row: row["edits"][kind][name] * OF_EDITS[name][1]


def reconstruction(row: dict[str, Any]) -> float:
    """PSNR, dB."""
    return row["reconstruction_psnr"]


def means(rows: Sequence[dict[str, Any]], value: Value) -> list[tuple[int, dict[str, float]]]:
    """By step, the mean over clips with its interval."""
    steps = sorted({row["step"] for row in rows})
    return [(step, with_interval(np.array([value(row) for row in rows if row["step"] == step]))) for step in steps]


def gains(rows: Sequence[dict[str, Any]], value: Value) -> list[tuple[int, dict[str, float]]]:
    """By step, the mean over clips of the change since the untuned start, with its interval."""
    start = {row["clip"]: value(row) for row in rows if row["step"] == 0}
    return means([row for row in rows if row["step"]], lambda row: value(row) - start[row["clip"]])


def shown(found: dict[str, float], digits: int, sign: str = "") -> str:
    """A mean with half of its interval, where several clips have one."""
    half = "" if math.isnan(found["half"]) else f" ± {found['half']:.{digits}f}"
    return f"{found['mean']:{sign}.{digits}f}{half}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each edit and step, with the clips' mean and 95 % interval (Student's t)."""
    titles = [title for title, *_ in OF_EDITS.values()]
    lines = [f"| edit | steps of tuning | {' | '.join(titles)} |", "|---|---:|" + "---:|" * len(titles)]
    for kind in KINDS:
        columns = [[shown(found, digits) for _, found in means(rows, of_edit(kind, name))]
                   for name, (_, _, digits) in OF_EDITS.items()]
        steps = [step for step, _ in means(rows, reconstruction)]
        lines += [f"| {kind} | {step} | {' | '.join(cells)} |"
                  for step, *cells in zip(steps, *columns, strict=True)]
    lines += ["", "| steps of tuning | reconstruction by its own caption, PSNR dB | change of it | change of the "
              "colour edit's trajectory error, px |", "|---:|---:|---:|---:|"]
    changes = [[shown(found, 2, "+") for _, found in gains(rows, value)]
               for value in (reconstruction, of_edit("colour", "trajectory_error"))]
    for place, (step, found) in enumerate(means(rows, reconstruction)):
        more = [column[place - 1] if place else "-" for column in changes]
        lines.append(f"| {step} | {shown(found, 1)} | {' | '.join(more)} |")
    clips = len({row["clip"] for row in rows})
    return "\n".join([*lines, "", f"{clips} clips; means over clips with 95 % intervals (Student's t), changes from "
                      "the untuned start clip by clip.", "", f"![curves](results/{PICTURE.name})"])


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The curves against the steps of tuning, with bands of 95 %."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(OF_EDITS) + 1)
    curves: list[tuple[str, dict[str, Value]]] = [
        (title, {kind: of_edit(kind, name) for kind in KINDS}) for name, (title, *_) in OF_EDITS.items()]
    for panel, (title, lines) in zip(panels, [*curves, ("reconstruction, PSNR dB", {"own caption": reconstruction})],
                                     strict=True):
        for label, value in lines.items():
            steps, found = zip(*means(rows, value), strict=True)
            middle, half = (np.array([one[name] for one in found]) for name in ("mean", "half"))
            panel.plot(steps, middle, marker="o", label=label)
            panel.fill_between(steps, middle - half, middle + half, alpha=0.15)
        panel.set(xlabel="steps of tuning", title=title)
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def main(page: Path = FOLDER / "README.md", record: Path = RECORD, picture: Path = PICTURE) -> None:
    """Draw the picture and put the table into the page."""
    rows = read(record)
    draw(rows, picture)
    page.write_text(insert(page.read_text(), "tuning", table(rows)))


if __name__ == "__main__":
    main()
