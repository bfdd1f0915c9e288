"""Tables and plots of made-up records."""

import importlib.util

import pytest

from tests.benchmark.record import measured, record, skipped
from tests.refusals import refused
from vdm_jax.attention import Full, SparseCausal
from vdm_jax.benchmark.cases import Case
from vdm_jax.benchmark.machine import GIB
from vdm_jax.benchmark.plots import draw, require_matplotlib, series
from vdm_jax.benchmark.report import markdown

FULL = Case(pattern=Full(), frames=8)
GATHER = Case(pattern=SparseCausal(own=True), kernel="gather", frames=8)


def test_a_measured_row():
    text = markdown(record(measured(FULL, 0.5, GIB)))
    assert "### forward, float32, 8 heads of 64, batch 1" in text
    rate = f"{FULL.flops / 0.5 / 1e9:,.1f}"
    assert f"| Full | auto (chunked) | none | 8 x 16x16 | 500 (450-550) | 1,024 | {rate} | 0.42 | 1.2 |" in text
    assert "1 x A processor; 2 cores, 8.0 GiB" in text and "jax 0.10.2" in text and "2026-01-02" in text
    assert "- matmul peak, float32: 100.0 GFLOP/s (2048 x 2048)" in text and "- work: what was done" in text
    assert "†" not in text and "‡" not in text


def test_interference_and_single_calls_are_marked():
    row = measured(GATHER, 0.001)
    row["seconds"] |= {"others_share": 0.2, "repetitions": 1}
    text = markdown(record(row))
    assert "| SparseCausal(own=True) | gather | none | 8 x 16x16 | 1 (0.9-1.1) † ‡ |" in text
    assert "† other processes" in text and "‡ one call" in text


def test_rows_that_did_not_run_stand_together_by_reason():
    larger = Case(pattern=Full(), frames=16)
    broken = Case(pattern=Full(), kernel="xla", frames=4)
    text = markdown(record(skipped(FULL, "too | large"), skipped(larger, "too | large; permitted: less"),
                           skipped(broken, "KeyError: x", status="failed")))
    assert "| Full | auto | none | 8 x 16x16, 16 x 16x16 | too / large |" in text
    assert "| Full | xla | none | 4 x 16x16 | failed: KeyError: x |" in text


def test_a_compiled_row():
    row = {"case": FULL.to_data(), "status": "compiled", "kernel": "splash", "devices": 8, "mesh": {"context": 8},
           "compile_seconds": 2.0, "flops": FULL.flops, "took_seconds": 2.0,
           "memory": {"arguments": 1, "outputs": 1, "temporaries": 3 * 2**20, "code": 0, "total": 5 * 2**20,
                      "peak": 4 * 2**20},
           "collectives": {"collective-permute": {"count": 16, "bytes": 2**21}}}
    found = record(row, device={"platform": "tpu", "kind": "TPU v5", "count": 8, "topology": "v5p:2x2x2"})
    del found["matmul"]
    text = markdown(found)
    assert ("| Full | auto (splash) | none | 8 x 16x16 | context=8 | 5 | 3 | 16 collective-permute 2.0 MiB | 2.0 |"
            in text)
    assert "topology v5p:2x2x2" in text


def test_series_differ_along_one_axis_alone():
    rows = [measured(Case(pattern=Full(), frames=frames, height=side, width=side))
            for frames in (16, 8) for side in (8, 16)]
    rows.append(measured(Case(pattern=SparseCausal(), frames=8)))
    frames, sides = (series(rows, axis) for axis in ("frames", "resolution"))
    assert {name.split(",")[1] for name in frames} == {" 8x8 tokens", " 16x16 tokens"}
    assert all([x for x, _ in points] == [8, 16] for points in (*frames.values(), *sides.values()))
    assert len(frames) == len(sides) == 2


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("package", "'vdm_jax[plots]'", "--no-plots"):
        require_matplotlib()


def test_pictures_of_what_grows(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [measured(Case(pattern=Full(), frames=frames, mode="forward+backward"), frames) for frames in (8, 16)]
    written = draw(record(*rows, skipped(GATHER, "no")), tmp_path)
    assert [path.name for path in written] == ["forward_backward_frames.png"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert draw(record(rows[0]), tmp_path) == []
