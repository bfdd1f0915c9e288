"""Our attention next to PyTorch's: what a record says, and one tiny run of it on a CPU."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.attention_benchmark import peer_sdpa, sdpa_workers
from experiments.attention_benchmark.peer_sdpa import PROTOCOL, Case, Worker, WorkerStopped, main, measure, table

CASE = Case(frames=2, side=4, heads=2, head_dim=8, dtype="float32", mode="forward+backward")
README = Path(peer_sdpa.__file__).with_name("README.md")
RESULTS = README.with_name("results")


def found(milliseconds: float, **more) -> dict:
    return {"median": milliseconds / 1e3, "low": milliseconds / 1e3, "high": 2 * milliseconds / 1e3,
            "flops_per_second": 1e12, "agrees": True, **more}


def record(**contenders) -> dict:
    row = {"frames": 16, "side": 32, "width": 0, "heads": 16, "head_dim": 64, "dtype": "bfloat16", "mode": "forward",
           "tokens": 16384, "name": "full", "contenders": contenders}
    if all("median" in contenders.get(name, ()) for name in ("vdm_jax", "torch")):
        row |= {"times_faster": 1.5, "others": 0.25}
    peak = {"flops_per_second": 4e12, "size": 8192}
    return {"protocol": PROTOCOL, "date": "2026-01-02", "peaks": {"vdm_jax": peak, "torch": peak}, "rows": [row],
            "vdm_jax": {"versions": {"jax": "1.0"}, "device": {"kind": "a device"}},
            "torch": {"versions": {"torch": "2.0"}, "device": "a device"}}


def test_flops_of_a_case_are_those_of_our_benchmark():
    from vdm_jax.attention import Full
    from vdm_jax.benchmark.cases import Case as OurCase

    ours = OurCase(pattern=Full(), frames=2, height=4, width=4, heads=2, head_dim=8, mode="forward+backward")
    assert CASE.flops == ours.flops and CASE.tokens == ours.tokens == 32


@pytest.mark.parametrize(("pattern", "size", "extra_keys"), [
    ("spatial", (2, 3, 4), 0), ("temporal", (3, 2, 2), 0), ("SparseCausal(own=True)", (4, 2, 2), 0),
    ("causal", (3, 2, 2), 0), ("cross", (2, 2, 3), 5)])
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (requirements/peers.txt)")
@pytest.mark.full
def test_torch_computes_the_pattern(pattern, size, extra_keys):
    case = {"frames": size[0], "side": size[1], "width": size[2], "heads": 2, "head_dim": 4, "dtype": "float32",
            "mode": "forward", "pattern": pattern, "extra_keys": extra_keys}
    contenders = [None, "frames"] if pattern == "causal" else [None]
    samples = []
    for library, backend in [(sdpa_workers.Ours(), None), *((sdpa_workers.Torch("cpu"), b) for b in contenders)]:
        call, wait, known = library.build(case | {"backend": backend})
        call()
        wait()
        samples.append(known["sample"]())
    for sample in samples[1:]:
        np.testing.assert_allclose(sample, samples[0], atol=1e-5)


def test_a_cpu_compares_every_pattern():
    args = argparse.Namespace(frames=None, side=None, heads=None, head_dims=None, dtype=None)
    names = {case.name for case in peer_sdpa.cases_of(args, "cpu")}
    assert names >= {"spatial", "temporal", "causal", "full", "SparseCausal(own=True)", "cross to 77"}
    assert {case.name for case in peer_sdpa.cases_of(args, "gpu")} == {"full"}
    cross = Case(2, 2, 1, 4, "float32", "forward", "cross", 3, 5)
    assert cross.flops == 4 * 12 * 5 * 4 and Case(2, 2, 1, 4, "float32", "forward", "spatial", 3).flops == 4 * 72 * 4


def test_the_table_compares_with_the_best_of_torch():
    text = table(record(vdm_jax=found(2.0, kernel="cudnn"), torch=found(4.0), torch_flash=found(3.0, agrees=False),
                        torch_cudnn={"error": "RuntimeError: no | kernel"}))
    row = next(line for line in text.splitlines() if line.startswith("| full | forward | 16 x 32x32 |"))
    assert "| 2.00 (2.00-4.00) | 1 (25%) |" in row and "3.00 (3.00-6.00) (differs)" in row
    assert "RuntimeError: no / kernel" in row and row.endswith("| cudnn | 1.50 |")
    assert "forward 1.50 in the median, 1.50 at least. Other processes took 25% of the machine" in text
    assert "torch 2.0" in text and "a device" in text and PROTOCOL["statistic"] in text


def test_goals_are_stated_next_to_what_was_recorded():
    recorded = json.loads((RESULTS / "peer_sdpa_cpu_one_core.json").read_text())
    text = table(recorded)
    rows = {row["name"] + row["mode"]: row["contenders"]["vdm_jax"]["median"] for row in recorded["rows"]
            if row["frames"] == 16}
    causal = rows["causalforward"] / rows["fullforward"]
    reached = "yes" if causal <= 0.6 else "no"
    assert f"| causal over full, 16 frames: seconds | <= 0.6 | {causal:.2f} | {reached} |" in text
    assert "| forward | goal |" not in table(recorded | {"rows": recorded["rows"][:4]})
    least = 4 * 4 * 16 * 256 * 8 * 64 / 2e10  # four float32 arrays of 16 frames of 16x16 tokens, 8 heads of 64
    bound = "| temporal, 16 frames: seconds over those of moving its four arrays once | <= 3 | "
    assert bound + f"{rows['temporalforward'] / least:.2f} |" in table(recorded | {"moved": {"bytes_per_second": 2e10}})


def test_the_faster_of_ours_counts():
    recorded = json.loads((RESULTS / "peer_sdpa_cpu_one_core.json").read_text())
    for row in recorded["rows"]:
        if row["name"] == "causal":
            row["contenders"]["vdm_jax_devices"] = row["contenders"]["vdm_jax"] | {"median": 1e-9}
    assert "| causal over full, 16 frames: seconds | <= 0.6 | 0.00 | yes |" in table(recorded)


def test_a_failure_of_ours_is_shown():
    row = table(record(vdm_jax={"error": "out of memory"}, torch=found(4.0))).splitlines()[2]
    assert "out of memory" in row and row.endswith("| - | - |")


def test_the_report_stands_beside_the_record_and_in_the_readme(tmp_path):
    (tmp_path / "peer_sdpa_cpu.json").write_text(json.dumps(record(vdm_jax=found(2.0), torch=found(4.0))))
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text())
    peer_sdpa.write_report(tmp_path, readme)
    assert "| 1.50 |" in (tmp_path / "peer_sdpa_cpu.md").read_text() and "### CPU\n\n| pattern |" in readme.read_text()
    assert main(["--report", "--out", str(tmp_path)]) == 0


def test_both_libraries_get_the_same_numbers():
    long = sdpa_workers.block(1, sdpa_workers.BLOCK + 3, 2, 4)
    assert long.shape == (sdpa_workers.BLOCK + 3, 2, 4)
    np.testing.assert_array_equal(long[sdpa_workers.BLOCK :], long[:3])
    assert np.abs(sdpa_workers.block(2, 5, 2, 4) - sdpa_workers.block(1, 5, 2, 4)).max() > 0.1


def test_our_worker_measures_and_survives_a_bad_case(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    worker = Worker(sys.executable, "--library", "vdm_jax")
    try:
        assert worker.about["platform"] == "cpu" and "jax" in worker.about["versions"]
        assert worker.ask(peak=64, dtype="float32")["flops_per_second"] > 0
        row = measure(CASE, ("vdm_jax",), {"vdm_jax": worker}, 0.001)
        ours = row["contenders"]["vdm_jax"]
        assert ours["kernel"] in ("xla", "chunked") and 0 < ours["low"] <= ours["median"] <= ours["high"]
        assert "TypeError" in worker.ask(name="bad", build={**row, "dtype": "float7"})["error"]
        assert worker.ask(forget=True) == {}
        two = Worker(sys.executable, "--library", "vdm_jax", devices=2)
        try:
            shared = measure(CASE, ("vdm_jax", "vdm_jax_devices"), {"vdm_jax": worker, "vdm_jax_devices": two}, 0.001)
            assert shared["contenders"]["vdm_jax_devices"]["agrees"] and "times_faster" not in shared
        finally:
            two.stop()
    finally:
        worker.stop()


def test_a_python_without_torch_is_one_line(monkeypatch, capsys, tmp_path):
    class NoTorch:
        about = {"platform": "cpu"}

        def __init__(self, python, *arguments, devices=1):
            if "torch" in arguments:
                raise WorkerStopped("ModuleNotFoundError: No module named 'torch'")

        def stop(self):
            pass

    monkeypatch.setattr(peer_sdpa, "Worker", NoTorch)
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("peer_sdpa: a worker stopped: ModuleNotFoundError: No module named 'torch'; "
                                       "permitted: torch in this Python, or --torch-python\n")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (requirements/peers.txt)")
@pytest.mark.full
def test_a_tiny_run_of_both(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main(["--frames", "2", "--side", "6", "--heads", "2", "--head-dims", "8", "16", "--seconds", "0.001",
                 "--matmul-size", "64", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "peer_sdpa_cpu.json").read_text())
    assert [(row["mode"], row["head_dim"]) for row in found["rows"]] == [
        (mode, dim) for mode in ("forward", "forward+backward") for dim in (8, 16)]
    for row in found["rows"]:
        assert row["tokens"] == 72 and set(row["contenders"]) == {"vdm_jax", "torch"}
        assert all(c["agrees"] and c["median"] > 0 for c in row["contenders"].values())
    assert "torch" in found["torch"]["versions"] and found["peaks"]["torch"]["flops_per_second"] > 0
    assert found["moved"]["bytes_per_second"] > 0 and found["moved"]["bytes"] == 2**28
    assert main(["--only-moved", "--matmul-size", "64", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "peer_sdpa_cpu.json").read_text())
    assert again["rows"] == found["rows"] and again["moved"]["repetitions"] > 0
    assert (tmp_path / "peer_sdpa_cpu.md").read_text().count("| full | forward") == 4
    assert "4/4 full forward+backward 72 tokens" in capsys.readouterr().out
