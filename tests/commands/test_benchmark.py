"""`vdm-jax benchmark attention` end to end on the CPU."""

import importlib.util
import json
import time

import pytest

from vdm_jax.benchmark import sweep
from vdm_jax.commands.main import main

COMMAND = ["benchmark", "attention", "--patterns", "full", "sparse-causal", "--kernels", "xla", "gather",
           "--frames", "2", "3", "--sides", "3", "--heads", "2", "--head-dims", "8", "--modes", "forward",
           "--seconds", "0.02", "--matmul-size", "64", "--no-plots", "--out", "out"]


def test_a_tiny_sweep_is_measured_reported_and_resumed(tmp_path, capfd, monkeypatch):
    assert main(COMMAND) == 0
    printed = capfd.readouterr()
    table = (tmp_path / "out" / "attention.md").read_text()
    assert table in printed.out and "out/attention.json" in printed.out
    assert "case 1/8, about" in printed.err and "left: Full xla none 2x3x3" in printed.err
    rows = json.loads((tmp_path / "out" / "attention.json").read_text())["rows"]
    assert [row["status"] for row in rows.values()].count("measured") == 6
    assert "| SparseCausal | gather | none | 3 x 3x3 |" in table
    assert "| Full | gather | none | 2 x 3x3, 3 x 3x3 | attention kernel='gather'" in table

    # Again with a longer clip: the finished rows are left alone.
    new = []
    monkeypatch.setattr(sweep, "run", lambda program, seconds: new.append(program.case.frames) or {
        "seconds": {"median": 1.0, "low": 1.0, "high": 1.0, "repetitions": 3, "others_share": 0.0}})
    longer = list(COMMAND)
    longer.insert(longer.index("--sides"), "4")
    assert main(longer) == 0
    assert new == [4, 4, 4]
    after = json.loads((tmp_path / "out" / "attention.json").read_text())["rows"]
    assert len(after) == 12 and {key: after[key] for key in rows} == rows

    # The table alone, from the record.
    (tmp_path / "out" / "attention.md").unlink()
    assert main(["benchmark", "attention", "--report", "--no-plots", "--out", "out"]) == 0
    assert "4 x 3x3" in (tmp_path / "out" / "attention.md").read_text()


def test_a_failed_case_shows_in_the_exit_code(monkeypatch, capfd):
    def fail(program, seconds):
        raise RuntimeError("no")

    monkeypatch.setattr(sweep, "run", fail)
    assert main([*COMMAND, "--patterns", "full", "--kernels", "xla", "--frames", "2"]) == 1
    printed = capfd.readouterr()
    assert "failed: RuntimeError: no" in printed.out and "1 cases failed" in printed.err


def test_an_interruption_says_how_to_go_on(monkeypatch, capfd):
    def stop(program, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run", stop)
    assert main(COMMAND) == 130
    assert "the same command goes on" in capfd.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--patterns", "fuller"], "pattern 'fuller' is unknown; permitted: Spatial"),
    (["--kernels", "flash"], "Sweep.kernels=('flash',) is not valid; permitted: a tuple of 'auto', 'chunked'"),
    (["--seconds", "0"], "--seconds=0.0 is not valid; permitted: > 0"),
    (["--memory-gib", "-1"], "--memory-gib=-1.0 is not valid; permitted: > 0"),
    (["--topology", "h100-8"], "topology 'h100-8' is unknown; permitted"),
    (["--frames", "many"], "many"),
    (["--report", "--out", "nowhere"], "nowhere/attention.json does not exist"),
])
def test_errors_are_one_line(arguments, message, fails, tmp_path):
    assert message in fails("benchmark", "attention", "--no-plots", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_everything_but_the_plots_is_made(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said_before = []

    def run(program, seconds):
        said_before.append(capfd.readouterr().err)
        return {"seconds": {"median": 1.0, "low": 1.0, "high": 1.0, "repetitions": 3, "others_share": 0.0}}

    monkeypatch.setattr(sweep, "run", run)
    command = [a for a in COMMAND if a != "--no-plots"] + ["--patterns", "full", "--kernels", "xla", "--frames", "2"]
    assert main(command) == 0
    assert "pip install 'vdm_jax[plots]', or --no-plots" in said_before[0]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["attention.json", "attention.md"]
    assert "out/attention.md" in capfd.readouterr().out
    assert main(["benchmark", "attention", "--report", "--out", "out"]) == 0
    assert "no plots" in capfd.readouterr().err


def test_a_missing_tpu_extra_is_told_before_anything_is_compiled(fails, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    start = time.monotonic()
    assert "pip install 'vdm_jax[tpu]'" in fails("benchmark", "attention", "--no-plots", "--topology", "v5p-64")
    assert time.monotonic() - start < 5
