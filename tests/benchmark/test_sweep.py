"""Sweeps on the CPU: what is measured, left out with a reason, resumed, and refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from tests.refusals import refused
from vdm_jax.attention import Causal, Full
from vdm_jax.benchmark import sweep, timing
from vdm_jax.benchmark.cases import Case, Sweep
from vdm_jax.benchmark.program import build, mesh_of
from vdm_jax.benchmark.record import load, save
from vdm_jax.parallel.compiling import no_compilation_cache
from vdm_jax.parallel.mesh import MeshSpec

TINY = dict(frames=(2,), sides=(4,), heads=(2,), head_dims=(8,))
QUICK = dict(seconds=0.05, matmul_size=64)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "attention.json"


def cases(**changes):
    return Sweep(**{**TINY, "patterns": ("full",), "kernels": ("xla",), "modes": ("forward",), **changes}).cases()


def test_rows_say_everything(path):
    steps = []
    sweep.measure(cases(modes=("forward", "forward+backward")), path, **QUICK, progress=lambda *s: steps.append(s))
    record = load(path)
    forward, both = record["rows"].values()
    assert {"device", "versions", "protocol", "date", "matmul"} <= set(record)
    assert record["matmul"]["float32"]["flops_per_second"] > 0 and record["matmul"]["float32"]["size"] == 64
    array = 4 * 2 * 16 * 2 * 8
    for row, arguments, outputs in ((forward, 3, 1), (both, 4, 4)):
        assert (row["status"], row["kernel"], row["devices"]) == ("measured", "xla", 1)
        assert row["memory"]["arguments"] == arguments * array
        assert row["memory"]["outputs"] >= outputs * array
        assert row["memory"]["total"] >= row["memory"]["arguments"] + row["memory"]["outputs"]
        times = row["seconds"]
        assert 0 < times["low"] <= times["median"] <= times["high"]
        assert times["repetitions"] >= timing.LEAST
        assert row["flops_per_second"] == pytest.approx(row["flops"] / times["median"])
        assert row["compile_seconds"] > 0
    assert both["flops"] == 3.5 * forward["flops"]
    assert [(done, total) for done, total, _, _ in steps] == [(0, 2), (1, 2), (2, 2)]
    assert all(left >= 0 for *_, left in steps)


def test_linear_attention_is_measured_next_to_kernels(path):
    sweep.measure(cases(kernels=("xla", "linear"), modes=("forward+backward",)), path, **QUICK)
    rows = {row["case"]["kernel"]: row for row in load(path)["rows"].values()}
    assert {row["status"] for row in rows.values()} == {"measured"} and rows["linear"]["kernel"] == "linear"
    assert rows["linear"]["flops"] == 3 * 4 * 32 * 2 * 8**2


def test_what_the_table_does_not_list_is_a_row_with_the_reason(path):
    sweep.measure(cases(kernels=("gather", "cudnn", "splash")), path, **QUICK)
    reasons = {row["case"]["kernel"]: row["reason"] for row in load(path)["rows"].values()}
    assert "not supported with pattern Full; permitted" in reasons["gather"]
    assert "runs on gpu, not on cpu" in reasons["cudnn"] and "runs on tpu" in reasons["splash"]


def test_a_shape_that_a_pattern_does_not_fit_is_a_row_with_the_reason(path):
    tiles = ("SlidingTiles(tile=(3, 3, 3))",)
    sweep.measure(cases(patterns=tiles, kernels=("gather", "xla")), path, **QUICK)
    for row in load(path)["rows"].values():
        assert row["status"] == "skipped" and "permitted: sides that divide frames" in row["reason"]


def test_what_does_not_fit_is_a_row_with_the_reason(path):
    size = dict(sides=(64,), head_dims=(1,))
    sweep.measure(cases(**size), path, **QUICK, limit=2**20)
    (row,) = load(path)["rows"].values()
    assert row["status"] == "skipped"
    assert row["reason"].startswith("does not fit: needs at least 0.5 GiB")  # 2 heads x 8192^2 x 4 bytes


def test_the_compiled_program_has_the_last_word_on_memory():
    case = cases(kernels=("chunked",))[0]
    mesh = mesh_of(case, jax.devices(), sweep.ALL_ON_CONTEXT, spread=False)
    least = case.least_bytes("chunked", "cpu")
    with pytest.raises(Exception, match="the compiled program needs"):
        build(case, mesh, least)
    assert build(case, mesh, 2**30).memory()["total"] > least


def test_finished_rows_are_left_alone_and_failed_ones_tried_again(path, monkeypatch):
    seen = []

    def run(program, seconds):
        seen.append(program.case.pattern)
        if program.case.pattern == Causal() and len(seen) == 2:
            raise RuntimeError("gave\nup")
        return {"seconds": {"median": 1.0, "low": 1.0, "high": 1.0, "repetitions": 1, "others_share": None}}

    monkeypatch.setattr(sweep, "run", run)
    wanted = cases(patterns=("full", "causal"))
    sweep.measure(wanted, path, **QUICK)
    rows = load(path)["rows"]
    assert [row["status"] for row in rows.values()] == ["measured", "failed"]
    assert list(rows.values())[1]["reason"] == "RuntimeError: gave up"
    sweep.measure(wanted, path, **QUICK)
    assert seen == [Full(), Causal(), Causal()]
    assert [row["status"] for row in load(path)["rows"].values()] == ["measured", "measured"]
    sweep.measure(wanted, path, **QUICK, fresh=True)
    assert len(seen) == 5


def test_an_interrupted_sweep_keeps_what_it_has(path, monkeypatch):
    def interrupted(program, seconds):
        if program.case.frames == 3:
            raise KeyboardInterrupt
        return {"seconds": {"median": 1.0, "low": 1.0, "high": 1.0, "repetitions": 1, "others_share": None}}

    monkeypatch.setattr(sweep, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.measure(cases(frames=(2, 3)), path, **QUICK)
    assert [row["case"]["frames"] for row in load(path)["rows"].values()] == [2]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["device", "versions", "protocol"])
def test_a_record_of_other_circumstances_is_refused(name, path):
    sweep.measure(cases(), path, **QUICK)
    record = json.loads(path.read_text())
    record[name]["another"] = 1
    save(path, record)
    with refused("record.open_record", f"{name}"):
        sweep.measure(cases(), path, **QUICK)


def test_files_that_are_no_records_are_refused(path):
    for text in ("{", "[]", '{"rows": {}}'):
        path.write_text(text)
        with refused("record.load"):
            load(path)
    with refused("record.load"):
        load(path.with_name("other.json"))


def test_a_call_far_over_the_budget_is_not_repeated():
    case = cases(sides=(16,))[0]
    program = build(case, mesh_of(case, jax.devices(), sweep.ALL_ON_CONTEXT, spread=False))
    once = timing.run(program, seconds=1e-9)
    assert once["seconds"]["repetitions"] == 1
    assert once["seconds"]["median"] == pytest.approx(once["first_call_seconds"], abs=1e-6)


def test_without_a_context_tokens_stay_whole():
    case = cases()[0]
    assert mesh_of(case, jax.devices(), sweep.ALL_ON_CONTEXT, spread=False).size == 1
    shape = mesh_of(dataclasses.replace(case, batch=2), jax.devices(), sweep.ALL_ON_CONTEXT, spread=True).shape
    assert dict(shape) == {"data": 2, "fsdp": 1, "tensor": 2, "context": 2}
    program = build(case, mesh_of(case, jax.devices(), sweep.ALL_ON_CONTEXT, spread=True))
    assert program.memory()["arguments"] == 3 * 4 * 2 * 16 * 8  # one of two heads each, all tokens
    context = dataclasses.replace(case, context="ring")
    assert mesh_of(context, jax.devices(), MeshSpec(data=1, context=8), spread=False).shape["context"] == 8


def test_remaining_time_goes_by_flops_and_speed():
    small, large = (Case(pattern=Full(), kernel="xla", frames=2, height=s, width=s) for s in (16, 64))
    row = {"status": "measured", "case": small.to_data(), "flops_per_second": 1e9, "compile_seconds": 2.0}
    left = sweep.expected_seconds(large, {small.key: row}, budget=1e9)
    assert left == pytest.approx(2.0 + max(1e9, 3 * large.flops / 1e9))
    assert sweep.expected_seconds(large, {small.key: row}, budget=1e-9) == pytest.approx(2.0 + large.flops / 1e9)


def test_the_compilation_cache_is_off_while_measuring_only():
    before = jax.config.jax_enable_compilation_cache
    with no_compilation_cache():
        assert not jax.config.jax_enable_compilation_cache
    assert jax.config.jax_enable_compilation_cache == before
