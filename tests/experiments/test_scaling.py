"""The scaling experiment: what it compiles, that it goes on where it stopped, and what its page says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from experiments.scaling import cpu, report, run
from experiments.scaling.cases import Case, cases
from vdm_jax.benchmark.record import load
from vdm_jax.commands.compile_command import parse_mesh
from vdm_jax.planning import topology
from vdm_jax.planning.chips import CHIPS

TINY = Case(study="last", config=str(Path(__file__).parent / "tiny_base.py"), stage="base", generation="v5p", chips=8,
            batch=8, mesh=(2, 2, 1, 2))
ROW = {"status": "compiled", "verdict": "fits", "capacity": 2**35, "parameters": 2**30, "mesh": {
    "data": 1, "fsdp": 64, "tensor": 1, "context": 1}, "state": {"parameters": 2**26, "optimizer": 2**27, "ema": 2**26},
    "memory": {"needed": 2**34}, "chips": 64, "collectives": [{"sent": 2**31}], "compile_seconds": 100.0,
    "roofline": {"step_seconds": 1.25, "mfu": 0.5, "limited_by": "memory"}}


def test_every_case_is_a_slice_whose_chips_its_mesh_fills():
    for case in cases():
        slices = topology.parse(case.topology)
        chips = slices.count * slices.sides[0] * slices.sides[1] * (slices.sides[2] if len(slices.sides) > 2 else 1)
        data, fsdp, tensor, context = case.mesh
        assert chips == case.chips == data * fsdp * tensor * context
        # Weights are gathered, not summed, where half of a large slice or less shares them.
        assert fsdp <= max(chips // slices.count // 2, 32) or case.study == "even"
        assert case.batch % (data * fsdp * case.accumulation) == 0
        plan = case.plan()
        assert plan.batch == case.batch and getattr(plan.stage.network, "sharded_axis", "frames") == case.spread
        assert plan.stage.training.accumulation == case.accumulation
        assert (plan.stage.video.frames if case.spread == "frames" else plan.stage.video.height) % context == 0


def test_a_case_is_compiled_for_what_it_says(monkeypatch):
    """On virtual CPU devices in place of a slice."""
    monkeypatch.setattr(run, "devices_of", lambda plan: jax.devices())
    found = run.compiled(TINY)
    assert found["status"] == "compiled" and found["verdict"] == "fits" and found["devices"] == 8
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1, "context": 2} and found["collectives"]
    memory, kept, *rest = report.scaling_cells(found)
    assert memory.endswith(f"of {found['capacity'] / 2**30:.1f}") and rest == [""] * 4  # a CPU has no roofline
    # The state is split over fsdp and context, but for its vectors, which are many in so small a network.
    assert 1 <= float(kept.split("(")[1].rstrip(")")) < 1.5
    refused = run.compiled(Case(**{**vars(TINY), "batch": 3}))
    assert refused["status"] == "refused" and "batch 3 does not divide over 4 devices" in refused["reason"]


def test_what_is_counted_from_another_row_is_what_a_trace_counts(monkeypatch):
    """On four times the chips with twice the clips; but for the roofline, which a CPU does not have."""
    small = dataclasses.replace(TINY, what="train", mesh=(1, 2, 1, 1), chips=2, batch=8)
    large = dataclasses.replace(TINY, what="train", mesh=(4, 2, 1, 1), chips=8, batch=16, accumulation=2)
    monkeypatch.setattr(run, "devices_of", lambda plan: jax.devices()[: plan.mesh.data * plan.mesh.fsdp])
    monkeypatch.setattr(run, "cases", lambda: [small, large])
    rows = {small.name: run.counted(small, {})}
    traced = run.counted(large, {})
    monkeypatch.setattr(run, "chip_of", lambda device: CHIPS["v5e"])
    scaled = run.counted(large, rows)
    assert scaled["moved"] == traced["moved"] and scaled["state"] == traced["state"]
    assert scaled["least"] == traced["least"] > sum(scaled["state"].values())
    for name in ("model", "computed"):
        assert scaled["flops"][name] == pytest.approx(traced["flops"][name], rel=1e-2)
    assert scaled["roofline"]["chip"] == "v5e" and traced["roofline"] is None


def test_an_interrupted_run_goes_on(tmp_path):
    path, asked = tmp_path / "compiled.json", []

    def compile_case(case, stop=False):
        if stop and asked:
            raise KeyboardInterrupt
        asked.append(case.name)
        return ROW

    chosen = cases()[:3]
    with pytest.raises(KeyboardInterrupt):
        run.record(chosen, path, compile_case=lambda case: compile_case(case, stop=True))
    assert list(load(path)["rows"]) == asked == [chosen[0].name]
    run.record(chosen, path, compile_case=compile_case)
    assert asked == [case.name for case in chosen] == list(load(path)["rows"])
    run.record(cases()[:5], path, minutes=0.0, compile_case=compile_case)
    assert len(asked) == 3


def test_the_page_shows_what_is_recorded_and_names_what_is_not(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(Path(run.HERE / "README.md").read_text())
    weak = [case for case in cases() if (case.study, case.config) == ("weak", "imagen_video/cascade")]
    weak = sorted(weak, key=lambda case: (case.generation != "v5p", case.chips))[1:]  # 64, 256 and 1,024 chips first
    other = next(case for case in weak if case.topology == "v6e-64")  # as the first, on another slice
    alone = next(case for case in weak if case.topology == "v5e-64")
    shapes = {**ROW, "status": "from shapes", "least": 2**33, "moved": {"sent": 2**30}}
    large = {**ROW, "verdict": "does not fit", "memory": {"needed": 2**36}}
    rows = {weak[0].name: ROW, weak[1].name: large}
    path = tmp_path / "results" / "compiled.json"
    path.parent.mkdir()
    path.write_text(json.dumps({
        "rows": rows, "shapes": {case.name: shapes for case in (other, alone)}, "device": {}, "versions": {"jax": "1"},
        "protocol": {"work": "none"}, "date": "2026-01-01"}))
    pytest.importorskip("matplotlib", reason="plots need matplotlib; pip install 'vdm_jax[plots]'")
    report.write_report(path, readme)
    text = readme.read_text()
    assert (f"| {weak[0].topology} (64) | 256 | 4 x 16 | 16.0 of 32.0 | 0.25 (1.000) | 1.250 | 50% | memory | 2.0 |"
            in text)
    assert "64.0 of 32.0, does not fit" in text and "Not compiled: v5e-64, v5e-256," in text
    assert "| v6e-64 (64) | 256 | 4 x 16 | 16.0 of 32.0 ‡ | 0.25 (1.000) | 1.250 | 50% | memory | 2.0 ‡ |" in text
    assert ("| v5e-64 (64) | 256 | 2 x 32 | at least 8.0 of 32.0 | 0.25 (1.000) | 1.250 | 50% | memory | at least 1.0 |"
            in text)
    assert (path.parent / "weak.png").stat().st_size > 10_000 and "weak.png" in text
    assert not (path.parent / "strong.png").exists()


def test_a_program_that_sums_its_weights_stands_for_no_other():
    whole = next(case for case in cases() if case.study == "even" and case.mesh[0] == 1)
    rows = {whole.name: ROW}
    assert report.twin(whole, rows) is ROW
    half = next(case for case in cases() if case.mesh[0] > 1 and case.mesh[1:] == whole.mesh[1:]
                and (case.config, case.batch / case.chips) == (whole.config, whole.batch / whole.chips))
    assert report.twin(half, rows) is None


def test_the_table_of_the_measured_check():
    assert {parse_mesh(mesh).sizes for meshes in cpu.MESHES.values() for mesh in meshes} >= {(8, 1, 1, 1), (2, 4, 1, 1)}
    text = report.cpu_table({"rows": [{"devices": 2, "mesh": "data=2", "batch": 8, "seconds": {
        "median": 2.0, "lowest": 1.5, "highest": 3.0}}], "device": "A CPU", "versions": {"jax": "1"}, "date": "today",
        "protocol": "As it is."})
    assert "| 2 | 8 | data=2 | 2.00 (1.50-3.00) | 4.00 |" in text and text.endswith("Recorded today. As it is.")


def test_the_table_of_overlap():
    """Instructions and cycles are those of one gather."""
    row = {"slice": "v5e-16", "mesh": {"data": 4, "fsdp": 4}, "effort": "full", "flags": None}
    rows = [{**row, "gathers": {"count": 5, "overlapped": 4, "distance": 8, "cycles": 4000}},
            {**row, "flags": "v6e", "gathers": {"count": 5}}]
    text = report.overlap_table({"rows": rows, "chain": {"layers": 3, "channels": 64, "tokens": 16, "clips": 4},
                                 "versions": {"jax": "1"}, "date": "today"})
    assert "| v5e-16 | 4 x 4 | full | none | 5 | 4 | 2 | 1,000 |\n| v5e-16 | 4 x 4 | full | v6e | 5 | 0 |  |  |" in text


def test_the_table_of_sums():
    row = {"slice": "v5p-128", "chips": 64, "rows": 16, "weights": 1024}
    rows = [{**row, "fsdp": 64, "bytes": {"all-reduce": 2048}},
            {**row, "fsdp": 32, "bytes": {"all-gather": 1024, "reduce-scatter": 1024, "all-reduce": 16}}]
    text = report.sums_table({"rows": rows, "versions": {"jax": "1"}, "date": "today"})
    assert ("| v5p-128 | 64 (all of a slice) | 16 | summed | summed whole |\n"
            "| v5p-128 | 32 | 16 | gathered | scattered |") in text
