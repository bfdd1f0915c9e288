"""`vdm-jax compile` end to end on virtual CPU devices."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from vdm_jax.commands.compile_command import Compile, _plan, parse_mesh
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.main import main
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.planning.flops import remat_choices

BASE = str(Path(__file__).parent.parent / "experiments" / "tiny_base.py")
COMMAND = ["compile", BASE, "--cache", "plans", "--mesh.fsdp", "2"]


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_a_train_step_is_described_kept_and_judged(tmp_path, capfd, wide):
    assert main([*COMMAND, "--out", "report.json"]) == 0
    printed = capfd.readouterr()
    assert "compiling" in printed.err
    for text in ("tiny_base, stage base: train step of 8 clips on 8 cpu chips (the devices at hand)", "data=4, fsdp=2",
                 ", fits", "no published figures for cpu", "all-gather", "fsdp", "sent at least"):
        assert text in printed.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == "compiled" and report["verdict"] == "fits" and report["advice"] == []
    assert report["parameters"] > 1000 and report["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}
    assert report["flops"]["model_per_device"] == report["flops"]["model"] / 8
    assert report["memory"]["needed"] >= sum(report["state"].values())
    kinds = {(row["kind"], row["axes"]) for row in report["collectives"]}
    assert ("all-gather", "fsdp") in kinds and not any(axes == "unknown" for _, axes in kinds)
    (kept,) = (tmp_path / "plans").glob("tiny_base-base-train-*.json")

    # The second time the report is read, and a made-up small memory makes it a different answer, with advice.
    written = kept.stat().st_mtime_ns
    assert main([*COMMAND, "--memory-gib", "0.00005"]) == 0
    printed = capfd.readouterr()
    assert "kept from before" in printed.out and "compiling" not in printed.err
    assert "It does not fit" in printed.out and "--base.network.remat" in printed.out
    assert kept.stat().st_mtime_ns == written


def test_sampling_is_described(capfd, wide):
    assert main([*COMMAND, "--what", "sample", "--batch", "16", "--out", "sample.json"]) == 0
    report = json.loads(Path("sample.json").read_text())
    assert "sampling of 16 clips" in capfd.readouterr().out
    assert report["flops"]["evaluations"] == 2 and set(report["state"]) == {"parameters"}


def test_a_search_shows_what_it_compiles_and_what_fits(capfd, wide):
    assert main([*COMMAND, "--what", "sample", "--search", "--meshes", "data=8", "data=5", "--most", "8", "--out",
                 "search.json"]) == 0
    printed = capfd.readouterr()
    assert f"mesh data=8, remat {remat_choices()[0]}, batch 8: fits" in printed.err
    assert "(1 of at most " in printed.err
    assert "What fits, the best first" in printed.out and "does not fit 8 devices" in printed.out
    rows = json.loads(Path("search.json").read_text())["rows"]
    assert rows[0]["report"]["batch"] == 8 and rows[-1]["report"] is None


@pytest.mark.parametrize(("arguments", "message"), [
    (["--topology", "h100-8"], "topology 'h100-8' is unknown; permitted: products such as v5p-128"),
    (["--stage", "nope"], "stage 'nope' is unknown; permitted: base"),
    (["--batch", "0"], "--batch=0 is not valid; permitted: >= 1"),
    (["--batch", "12"], "batch 12 does not divide over 8 devices; permitted: multiples of 8"),
    (["--memory-gib", "-1"], "--memory-gib=-1.0 is not valid"),
    (["--memory-gib", "nan"], "--memory-gib=nan is not valid"),
    (["--price", "-2"], "--price=-2.0 is not valid; permitted: > 0"),
    (["--meshes", "data=8"], "--meshes=data=8 without --search"),
    (["--search", "--meshes", "rows=8"], "'rows=8' is not valid; permitted: AXIS=SIZE"),
    (["--mesh.tensor", "3"], "MeshSpec"),
    (["--xla-flags", "v9"], "--xla-flags=v9 is unknown; permitted: "),
    (["--what", "evaluate"], "evaluate"),
])
def test_errors_are_one_line(arguments, message, fails, tmp_path):
    assert message in fails(*COMMAND, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_compiler_names_the_extra(fails, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'vdm_jax[tpu]'" in fails(*COMMAND, "--topology", "v5p-64")


def test_meshes_are_written_as_axes():
    assert parse_mesh("data=8, fsdp=2") == MeshSpec(data=8, fsdp=2)
    assert parse_mesh("fsdp=-1") == MeshSpec(data=1, fsdp=-1)


def test_texts_are_as_long_as_the_data_says():
    config = load_config("vdm/text_small")
    assert [_plan(Compile(config="x", text_tokens=n), config).text_tokens for n in (None, 7)] == [64, 7]
    other = dataclasses.replace(config, data=PreparedClips(path="clips"))
    assert _plan(Compile(config="x"), other).text_tokens == 128
