"""The record of `run.py` as tables in README.md, and a picture of the first clips: control, generated, real.

Run:  python -m experiments.control_digits.report
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

from experiments.control_digits.run import FOLDER, GOALS, NONE, REAL, SILENT
from experiments.digit_rows import PICTURE, SHOWN, draw_strips, lines_of, with_picture
from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from vdm_jax.benchmark.record import load
from vdm_jax.commands.configs import load_config
from vdm_jax.digits.clips import generate_clip
from vdm_jax.digits.controls import Kind

COLUMNS = {"trajectory_error": "trajectory error, px of 64", "edge_f1": "edge F1", "digit": "digit", "colour": "colour",
           "motion": "motion", "whole": "whole caption"}


def kinds_of(record: dict[str, Any]) -> list[str]:
    """The kinds of maps that were measured, in their order."""
    return [kind for kind in get_args(Kind) if kind in record["rows"]]


def table(record: dict[str, Any]) -> str:
    """A line for each row that has videos: bounds, kinds with their own and another clip's maps, two at once."""
    kinds = kinds_of(record)
    names = [REAL, NONE, SILENT, *(name for kind in kinds for name in (kind, f"{kind}, of another clip")),
             *(name for name in record["rows"] if " + " in name)]
    return "\n".join([*lines_of(record, "control", COLUMNS, names), "", *goals(record), "", about(record)])


def goals(record: dict[str, Any]) -> list[str]:
    """What was aimed at, and whether it was reached."""
    rows, found = record["rows"], []
    for kind in kinds_of(record):
        if kind == "reference":
            value, goal = rows[kind]["digit"]["mean"], GOALS["reference_digit"]
            reached, what = value >= goal, f"digit of the reference right {value:.2f}, goal >= {goal:g}"
        else:
            value, goal = rows[kind]["trajectory_error"]["mean"], GOALS["trajectory_error"]
            reached, what = value <= goal, f"trajectory error {value:.2f} px of 64, goal <= {goal:g}"
        found.append(f"- {kind}: {what}: {'reached' if reached else 'not reached'}.")
    return found


def about(record: dict[str, Any]) -> str:
    """How the numbers came about."""
    protocol, rows, base = record["protocol"], record["rows"], record["base"]
    zero = [kind for kind in kinds_of(record) if rows.get(f"{kind}: weight 0 is no control", {}).get("equal")]
    minutes = ", ".join(f"{kind} {rows[f'{kind}: training']['train_seconds'] / 60:.1f}" for kind in kinds_of(record))
    device = record["device"]
    return (f"Means with 95 % intervals over the first {protocol['clips']} clips of the {protocol['split']} split "
            f"(Student's t); one training of each model (seed {protocol['seed']}; base: seed {base['seed']}, "
            f"{base['steps']} steps), {protocol['steps']} steps of {protocol['batch']} clips, "
            f"{protocol['sampling_steps']} sampling steps. Edges agree within {protocol['edge_tolerance']:g} pixels of "
            f"64. With a weight of 0 the videos are those without control to the last bit: {', '.join(zero) or 'none'}."
            f" Minutes of training, of the last sitting where it was interrupted: {minutes}. {device['kind']}, "
            f"{device['cores']} cores; jax {record['versions']['jax']}; {record['date']}.")


def on_page(record: dict[str, Any], page: Path, picture: Path) -> str:
    """The tables, and under them the picture where there is one, by its place next to the page."""
    return with_picture(table(record), "control, generated, real", page, picture)


def main(page: Path = FOLDER / "README.md", path: Path = FOLDER / "results" / "cpu.json") -> int:
    """Put the tables into the page, and draw the picture next to the record."""
    def write() -> None:
        record = load(path)
        data = load_config(record["protocol"]["config"]).data
        captions = [generate_clip(data, "test", i).caption for i in range(SHOWN)]
        rows = [REAL, NONE, *(name for kind in kinds_of(record) for name in (f"{kind} map", kind))]
        draw_strips(path.parent, rows, captions)
        page.write_text(insert(page.read_text(), "controls", on_page(record, page, path.parent / PICTURE)))

    return exit_code("control_digits", write)


if __name__ == "__main__":
    sys.exit(main())
