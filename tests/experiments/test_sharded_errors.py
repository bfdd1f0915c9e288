"""The table of sharded against single attention, and that of densities: what is compared, what the pages show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.attention_benchmark import densities, sharded_errors
from experiments.readme_tables import insert
from vdm_jax.attention import Causal, Full, TemporalCausal
from vdm_jax.attention.capability import CAPABILITIES
from vdm_jax.benchmark.cases import PATTERNS
from vdm_jax.benchmark.record import load


def test_every_pattern_stands_in_every_row_of_a_cpu():
    """What the capability table lists for a pattern is compared, and nothing else."""
    found = {(type(pattern).__name__, kernel, context) for context, kernel, pattern in sharded_errors.cases()}
    listed = {(name, kernel, context) for (kernel, context), entry in CAPABILITIES.items() for name in entry.patterns
              if context != "none" and "cpu" in entry.platforms}
    assert found == listed
    assert {type(pattern).__name__ for pattern in sharded_errors.PATTERNS} == set(PATTERNS) - {"PerHead"}


def test_a_case_is_measured_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded_errors, "SHAPE", (8, 1, 2))
    todo, path = [("ring", "xla", Causal()), ("halo", "gather", TemporalCausal(window=3))], tmp_path / "record.json"
    record = sharded_errors.measure(path, todo)
    for row in record["rows"].values():
        assert 0 < max(sharded_errors.worst(row)) < sharded_errors.TOLERANCE
    monkeypatch.setattr(sharded_errors, "errors", None)  # nothing is measured twice
    assert sharded_errors.measure(path, todo)["rows"] == record["rows"]
    text = sharded_errors.table(record)
    assert "| Causal | xla |" in text and "Largest error of 2 rows" in text
    lines = [line for line in text.splitlines() if line.startswith("| TemporalCausal(window=3) | gather |")]
    assert len(lines) == 1 and lines[0].count(" / ") == 1


def test_a_wrong_gradient_would_be_seen(monkeypatch):
    """Another pattern on one device than on eight: the error is of the order of the values."""
    monkeypatch.setattr(sharded_errors, "SHAPE", (8, 1, 2))
    monkeypatch.setattr(sharded_errors, "single", lambda pattern, heads, single=sharded_errors.single: single(
        Full(), heads))
    assert max(sharded_errors.worst(sharded_errors.errors("ring", "xla", Causal()))) > 0.1


@pytest.mark.parametrize("page", sharded_errors.PAGES, ids=lambda page: page.name)
def test_pages_show_what_is_recorded(page: Path):
    record = load(sharded_errors.RECORD)
    text = page.read_text()
    assert insert(text, "sharded_errors", sharded_errors.table(record)) == text
    assert len(record["rows"]) == len(sharded_errors.cases())
    assert max(max(sharded_errors.worst(row)) for row in record["rows"].values()) < sharded_errors.TOLERANCE


def test_the_table_of_densities_is_counted_anew():
    text = densities.PAGE.read_text()
    assert insert(text, "densities", densities.table()) == text
    assert "| `Full` | 1 | 117 | 1 | 173 |" in text  # 4 S^2 K D with S = 75,600 and 118,800


def test_main_reports_without_measuring(tmp_path, monkeypatch, capsys):
    page, path = tmp_path / "page.md", tmp_path / "record.json"
    page.write_text("<!-- sharded_errors:begin -->\n<!-- sharded_errors:end -->\n")
    row = {"pattern": "Full", "context": "ring", "kernel": "xla", "heads": 4, "output": 1e-7, "d_q": 1e-7, "d_k": 2e-7,
           "d_v": 1e-3}
    record = load(sharded_errors.RECORD) | {"rows": {"Full ring xla": row}}
    path.write_text(json.dumps(record))
    monkeypatch.setattr(sharded_errors, "RECORD", path)
    monkeypatch.setattr(sharded_errors.write_report, "__defaults__", (path, (page,)))
    assert sharded_errors.main(["--report"]) == 1  # above the tolerance
    assert "above 1e-05: Full ring xla" in capsys.readouterr().out and "1e-07 / 1e-03" in page.read_text()
