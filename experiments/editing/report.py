"""The records of `run.py` and `image_methods.py` as tables in README.md.

Run:  python -m experiments.editing.report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.editing.run import FOLDER, PEAK, read
from experiments.readme_tables import insert

TABLES = ("digits", "image_methods")
COLUMNS = {"whole": "all right", "colour": "colour", "digit": "digit", "motion": "motion",
           "trajectory_error": "trajectory error, px", "background_change": "background change, %",
           "warp_error": "warp error x 1000", "frame_change": "change of digit pixels a frame",
           "cpu_seconds_per_clip": "CPU s a clip", PEAK: "peak memory, MiB"}
DIGITS = {PEAK: 0}  # after the point; 2 of the others
SCALES = {"background_change": 100, "warp_error": 1000}


def cell(row: dict[str, Any], name: str) -> str:
    """A value, or a dash where it was not measured."""
    if row.get(name) is None:
        return "-"
    return f"{row[name] * SCALES.get(name, 1):.{DIGITS.get(name, 2)}f}"


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each edit and method."""
    lines = [f"| edit | method | clips | {' | '.join(COLUMNS.values())} |", "|---|---|" + "---:|" * (len(COLUMNS) + 1)]
    for row in rows:
        values = [cell(row, name) for name in COLUMNS]
        lines.append(f"| {row['edit']} | {row['method']} | {row['clips']} | {' | '.join(values)} |")
    return "\n".join(lines)


def main(page: Path = FOLDER / "README.md", records: Path = FOLDER / "results") -> None:
    """Put the tables into the page."""
    text = page.read_text()
    for name in TABLES:
        text = insert(text, name, table(read(records / f"{name}.json")))
    page.write_text(text)


if __name__ == "__main__":
    main()
