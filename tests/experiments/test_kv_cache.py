"""Kept keys against recomputation: what is timed is the same estimate, and what the page says."""

from __future__ import annotations

from experiments.attention_benchmark import kv_cache
from experiments.readme_tables import insert
from vdm_jax.benchmark.record import load


def test_both_ways_come_to_the_same_and_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    estimates = kv_cache.estimates(kv_cache.stage_of(4, 16))
    assert float(abs(estimates["kept"]()).max()) > 0.01
    found = kv_cache.record(path, ((4, 16),), 1)
    row, = found["rows"].values()
    assert row["difference"] < 1e-5 and row["tokens"] == 4 * 2 * 2 and row["block"] == 2
    assert all(seconds > 0 for seconds in row["seconds"].values())
    monkeypatch.setattr(kv_cache, "measure", None)  # nothing is measured twice
    assert kv_cache.record(path, ((4, 16),), 1)["rows"] == found["rows"]
    assert "| 4 frames of 16x16 | 16 |" in kv_cache.table(load(path))


def test_the_page_has_the_record():
    record, text = load(kv_cache.RECORD), (kv_cache.HERE / "README.md").read_text()
    assert set(record["rows"]) == {f"{frames} frames of {side}x{side}" for frames, side in kv_cache.CASES}
    assert insert(text, "kv_cache", kv_cache.table(record)) == text
