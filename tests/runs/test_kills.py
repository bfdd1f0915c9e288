"""`kill -9` at any moment costs the steps since the last finished save and nothing else."""

from __future__ import annotations

import os
import random

import jax
import numpy as np
import pytest

from tests.multiprocess import job
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import checkpoints_path, read_config
from vdm_jax.runs.records import read_records
from vdm_jax.training.state import abstract_state

EVERY = 3  # steps between saves
UNFINISHED = "*.orbax-checkpoint-tmp"


def start(folder, run, data, steps):
    """`vdm-jax train` of the tiny base stage, saving and logging all the time, on one device."""
    flags = {"steps": steps, "checkpoint-every": EVERY, "validate-every": 0, "keep": 2}
    command = ["train", job.TINY, "--stage", "base", "--run", run, "--data-dir", data]
    return job.Job(folder, command + [part for name, value in flags.items()
                                      for part in (f"--base.training.{name}", value)], devices=1)


def finish(folder, run, data, steps):
    with start(folder, run, data, steps) as work:
        assert work.wait() == [0], work.text()
        return work.text()


def state_of(run):
    """The last checkpoint as bytes by name."""
    experiment = read_config(run)
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    state, _ = Checkpoints(checkpoints_path(run, "base")).restore(abstract_state(experiment.stage("base"), mesh))
    state = state.replace(key=jax.random.key_data(state.key))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(state)}


def losses(run):
    return {record["step"]: record["loss"] for record in read_records(run / "base") if "loss" in record}


def kill(work, checkpoints, moment):
    """SIGKILL after `moment` seconds, or as soon as a save is under way where it is None; returns the steps then."""
    if moment is None:
        for _ in job.seconds(job.PATIENCE, pause=0.001):
            if any(checkpoints.directory.glob(UNFINISHED)):
                break
    else:
        for _ in job.seconds(moment):
            pass
    steps = checkpoints.steps()
    work.processes[0].kill()
    assert work.wait() == [-9], work.text()
    return steps


def killed_again_and_again(folder, data, moments):
    """Train with a kill at each of the moments, as `kill` takes them, after some steps, or before them where one is
    negative; returns the run and how many saves were cut off."""
    run, cut_off = folder / "run", 0
    checkpoints = Checkpoints(checkpoints_path(run, "base"))
    for number, moment in enumerate(moments):
        reached = checkpoints.latest() or 0
        early = moment is not None and moment < 0
        with start(folder / f"out{number}", run, data, 100_000) as work:
            if not early:
                work.until_step(reached + 1 + 2 * EVERY)  # so that a save of this process is finished
            steps = kill(work, checkpoints, abs(moment) if early else moment)
            assert early or (f"resuming at step {reached}" if reached else "initialising") in work.text()
        last = checkpoints.latest() or 0
        assert last >= max(steps, default=0)  # what was finished is still there
        assert checkpoints.newest_damages() == {}
        # A save goes on during the training, up to the next one.
        records = read_records(run / "base") if (run / "base" / "metrics.jsonl").exists() else []
        assert not records or records[-1]["step"] - last <= 2 * EVERY
        cut_off += any(checkpoints.directory.glob(UNFINISHED))
    return run, cut_off


def check(tmp_path, data, moments, cut_off_at_least):
    run, cut_off = killed_again_and_again(tmp_path, data, moments)
    assert cut_off >= cut_off_at_least
    steps = Checkpoints(checkpoints_path(run, "base")).latest() + 2
    finish(tmp_path / "last", run, data, steps)
    assert not list(checkpoints_path(run, "base").glob(UNFINISHED))
    finish(tmp_path / "whole", tmp_path / "uninterrupted", data, steps)
    assert losses(run) == losses(tmp_path / "uninterrupted")
    assert list(losses(run)) == list(range(1, steps + 1))
    assert state_of(run) == state_of(tmp_path / "uninterrupted")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.full
def test_three_kills_leave_no_trace(tmp_path, data):
    check(tmp_path, data, [None, 0.3, None], cut_off_at_least=1)


@pytest.mark.full
def test_kills_at_random_times_leave_no_trace(tmp_path, data):
    """As many as VDM_JAX_KILLS says: 100 take about an hour. Of ten, four come as soon as a save has begun, one while
    the program starts."""
    kills, draw = int(os.environ.get("VDM_JAX_KILLS", "100")), random.Random(0)
    moments = [draw.choice([None] * 4 + [draw.uniform(0, 1)] * 5 + [draw.uniform(-10, -1)]) for _ in range(kills)]
    check(tmp_path, data, moments, cut_off_at_least=max(1, kills // 7))
