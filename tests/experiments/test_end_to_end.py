"""The record of commands from start to end: what a row holds, and what the page says of it."""

from __future__ import annotations

import sys

import pytest

from experiments.end_to_end import run

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
    from vdm_jax.commands.configs import load_config

    for config, stage, _ in run.PROGRAMS:
        load_config(config).stage(stage)
