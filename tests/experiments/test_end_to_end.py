"""The record of commands from start to end: what a row holds, and what the page says of it."""

from __future__ import annotations

import json
import sys

import pytest

from experiments.end_to_end import run
from tests.refusals import refused
from vdm_jax.commands.configs import load_config
from vdm_jax.runs.directory import open_run

ROW = {"wall": 4.0, "cpu": 6.0, "peak_mib": 900, "others_share": 0.5}


def record(rows):
    return {"rows": rows, "device": {"kind": "a processor", "cores": 2}, "date": "2026-01-01", "versions": {"jax": "1"}}


def test_a_row_is_of_the_whole_process():
    row = run.measured([sys.executable, "-c", "x = bytes(200 * 2**20); sum(range(2 * 10**7))"])
    assert 0.1 < row["cpu"] < row["wall"] + 1
    assert row["peak_mib"] is None or row["peak_mib"] >= 200  # None: no more than this process takes itself
    with pytest.raises(RuntimeError, match="failed: .*no such thing"):
        run.measured([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_the_median_is_by_processor_seconds():
    found = run.median([{**ROW, "cpu": 9.0}, {**ROW, "wall": 3.0, "cpu": 5.0}, ROW])
    assert found == {**ROW, "least_wall": 3.0, "repetitions": 3}


def test_tables_say_what_the_records_say():
    commands = run.commands_table(record({"first sample, warm": {**ROW, "least_wall": 3.0}}))
    assert "| first sample, warm | 6.00 | 4.00 | 3.00 | 5.0 | 900 |" in commands
    assert "50% of the machine" in commands and "a processor, 2 cores, 2026-01-01" in commands
    row = {**ROW, "parameters": 2_500_000, "batch": 4, "trace_seconds": 1.5, "compile_seconds": 7.0}
    assert "| digits base | train | 2.50 M | 4 | 1.5 | 7.0 | 6.0 | 900 |" in run.compile_table(
        record({"digits base train": row}))


def test_programs_are_of_configs_that_exist():
    for config, stage, _ in run.PROGRAMS:
        load_config(config).stage(stage)


def test_the_speed_of_training_is_the_median_of_its_lines(tmp_path):
    experiment = load_config("captioned_digits")
    open_run(tmp_path, experiment)
    stages = experiment.stages
    for stage in stages:
        (tmp_path / stage.name).mkdir(exist_ok=True)
        lines = [{"step": 10 * n, "clips_per_second": 100.0 * n, "step_ms": 50.0, "data_wait_ms": 5.0}
                 for n in (1, 2, 4)]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 40, "validation_loss": 0.1}])
        (tmp_path / stage.name / "metrics.jsonl").write_text(text)
    found = run.demo(tmp_path)
    assert list(found) == [stage.name for stage in stages]
    assert found["base"] == {"video": str(stages[0].video), "batch": stages[0].training.batch_size, "steps": 40,
                             "clips_per_second": 200.0, "waiting": 0.1}
    assert f"| base | {stages[0].video} | {stages[0].training.batch_size} | 40 | 200.0 | 10% |" in run.demo_table(
        record(found))
    (tmp_path / "base" / "metrics.jsonl").unlink()
    with refused("end_to_end.demo", "base/metrics.jsonl has 0 lines with a speed"):
        run.demo(tmp_path)
