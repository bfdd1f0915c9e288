"""A trained tiny run, shared by the tests of the commands."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from vdm_jax.commands.main import main

TINY = str(Path(__file__).parent / "tiny.py")

EVALUATED = ("--base.training.evaluation.every", "2", "--base.training.evaluation.clips", "10")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def surroundings(tmp_path, data_dir, monkeypatch):
    """Every test runs in a folder of its own, and prepared data goes to a folder of the session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VDM_JAX_DATA", str(data_dir))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set by tests/conftest.py")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_dir):
    """The tiny run, trained through the command, by the first process of tests that asks for it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of several, each with a folder in the folder of all
        folder = folder.parent
    run = folder / "trained" / "tiny"
    run.parent.mkdir(exist_ok=True)
    with open(folder / "trained.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "spatial" / "summary.json").exists():  # written last
            assert main(["train", TINY, "--run", str(run), "--data-dir", str(data_dir), *EVALUATED]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run that a test may damage."""
    copy = tmp_path / "tiny"
    shutil.copytree(trained, copy)
    return copy


@pytest.fixture
def fails(capfd):
    """Runs a command that must fail as a user error; returns its one line."""

    def check(*arguments):
        capfd.readouterr()
        code = main([str(a) for a in arguments])
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("vdm-jax: error:")]
        assert code == 2
        assert len(lines) == 1
        return lines[0]

    return check
