"""What the tests of experiments on digits share: pages with a record's table and picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.readme_tables import insert


def written_page(report: Any, record: Path, marker: str, title: str) -> str:
    """The page that a report makes of a record next to it: between its marks the table, and last the picture, which is
    there, and no link where there is none."""
    page = record.parent / "README.md"
    page.write_text(f"before\n<!-- {marker}:begin -->\n<!-- {marker}:end -->\nafter\n")
    assert report.main(page, record) == 0 and (record.parent / "samples.png").exists()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"\n\n![{title}](samples.png)\n<!-- {marker}:end -->\nafter\n")
    assert "![" not in report.on_page(json.loads(record.read_text()), page, record.parent / "none.png")
    return text


def check_page(report: Any, folder: Path, marker: str) -> None:
    """The page of an experiment is what its record makes, or says that there is none."""
    path, page = folder / "results" / "cpu.json", folder / "README.md"
    text = page.read_text()
    if path.exists():
        found = report.on_page(json.loads(path.read_text()), page, path.parent / report.PICTURE)
        assert insert(text, marker, found) == text
    else:
        assert f"<!-- {marker}:begin -->\nNot measured yet.\n<!-- {marker}:end -->" in text
