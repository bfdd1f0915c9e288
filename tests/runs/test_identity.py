"""Who a run is and who trains it: a lock that dies with its holder, an identifier, a config as it was written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.commands.tiny import get_config
from tests.refusals import refused
from vdm_jax.errors import UserError
from vdm_jax.runs.directory import open_run, read_config
from vdm_jax.runs.identity import owner, read_identity, run_locks
from vdm_jax.runs.listing import described_runs

HOLDER = textwrap.dedent("""
    import pathlib, sys, time
    from vdm_jax.runs.identity import run_locks
    with run_locks(pathlib.Path(sys.argv[1]), ["base"]):
        print("held", flush=True)
        time.sleep(600)
""")


def test_a_second_training_is_refused_and_the_first_named_until_it_ends(tmp_path):
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, run], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout.readline() == "held\n"
            named = "stage 'base'", str(run), f"process {first.pid} on ", time.strftime(" %Y-"), "permitted: ", "--run"
            with refused("identity._lock", *named), run_locks(run, ["base"]):
                pass
            with run_locks(run, ["spatial"]):  # another stage may be trained meanwhile
                pass
        finally:
            first.send_signal(signal.SIGKILL)
    with run_locks(run, ["base"]):  # a dead process keeps nobody out
        assert f"process {os.getpid()} on" in (run / "train.base.lock").read_text()
        with refused("identity._lock"), run_locks(run, ["base"]):
            pass
    with run_locks(run, ["base"]):
        pass
    assert open_run(run, get_config()) == get_config()  # what locks leave is no foreign file


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with refused("identity._lock"):
        with run_locks(tmp_path / "file" / "run", ["base"]):
            pass


def test_a_run_keeps_its_identifier_and_two_runs_differ(tmp_path):
    for name in "ab":
        open_run(tmp_path / name, get_config())
    first = owner(tmp_path / "a", "base")
    open_run(tmp_path / "a", get_config())
    (tmp_path / "a").rename(tmp_path / "c")
    assert owner(tmp_path / "c", "base") == first and first["stage"] == "base"
    assert owner(tmp_path / "b", "base")["run"] != first["run"]
    assert read_identity(tmp_path / "nothing") is None and owner(tmp_path / "nothing", "base") == {"stage": "base"}


def test_a_flip_of_any_byte_of_a_config_is_refused(tmp_path):
    open_run(tmp_path, get_config())
    for name in ("config.json", "run.json"):
        path = tmp_path / name
        data = path.read_bytes()
        for place in range(0, len(data), max(len(data) // 60, 1)):
            for mask in (1, 128):
                path.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1:])
                try:
                    assert read_config(tmp_path) == get_config()
                    assert name == "run.json"  # its second hash, spaces or the identifier, which is not the config's
                except UserError as error:
                    assert "\n" not in str(error)
        path.write_bytes(data)
    assert read_config(tmp_path) == get_config()


@pytest.mark.parametrize("content", [
    b"\xff\xfe", b"[" * 100_000, b'{"kind": []}', b'{"kind": "Experiment", "stages": 1e999}', b"9" * 5000, None],
    ids=lambda content: str(content)[:20])
def test_damaged_runs_are_named_and_do_not_hide_others(tmp_path, content):
    open_run(tmp_path / "good", get_config())
    bad = tmp_path / "bad" / "config.json"
    bad.parent.mkdir()
    bad.mkdir() if content is None else bad.write_bytes(content)
    found = described_runs(tmp_path)
    assert found.pop(tmp_path / "good") == "base (not yet) > spatial (not yet)"
    assert list(found) == [tmp_path / "bad"]
    assert found[tmp_path / "bad"].startswith("damaged: ") and str(bad) in found[tmp_path / "bad"]
