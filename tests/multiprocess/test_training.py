"""Several processes train like one, stop together, and hand their checkpoints to any number of processes."""

from __future__ import annotations

import signal

import jax
import numpy as np
import pytest

from tests.multiprocess import job
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import checkpoints_path, load_stage, read_config
from vdm_jax.runs.records import read_records

MESH = ("--mesh.data", "1", "--mesh.fsdp", "4")  # every parameter, and every batch, over the devices of all processes
EVALUATED = ("--base.training.evaluation.every", "4", "--base.training.evaluation.clips", "4")
NAMES = ("step", "loss", "gradient_norm", "learning_rate", "validation_loss")


def logged(run):
    """Numbers of every record."""
    records = [record for record in read_records(run / "base") if {"loss", "validation_loss"} & set(record)]
    return [[record[name] for name in NAMES if name in record] for record in records]


def averages(run):
    """The averaged parameters, as one list of arrays."""
    return jax.tree.leaves(load_stage(run, read_config(run).stage("base")))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data):
    """The run of one process with four devices."""
    run = tmp_path_factory.mktemp("alone") / "run"
    job.train_here(run, data, mesh=MeshSpec(data=1, fsdp=4))
    return run


def check_same(run, alone):
    for ours, theirs in zip(logged(run), logged(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for ours, theirs in zip(averages(run), averages(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def check_outputs(work, processes):
    """Process 0 reports, the others say nothing."""
    assert f"{processes} processes (by flags), 4 devices" in work.text(0)
    assert "step 4/4" in work.text(0) and "run directory" in work.text(0)
    for index in range(1, processes):
        lines = work.text(index).splitlines()
        assert [line for line in lines if "peer ranks" not in line] == []  # what the collectives' library says at times


def test_two_processes_are_one(tmp_path, data, alone):
    """Scores of what they made included."""
    with job.train(tmp_path / "out", tmp_path / "run", data, *MESH, *EVALUATED, processes=2, devices=2) as work:
        assert work.wait() == [0, 0], work.text(0) + work.text(1)
        check_outputs(work, 2)
    check_same(tmp_path / "run", alone)
    stage = tmp_path / "run" / "base"
    (scored,) = [record for record in read_records(stage) if "evaluation/digits/whole" in record]
    assert scored["step"] == 4 and scored["evaluation/real/digits/count"] > 0.5
    assert (stage / "evaluation" / "training_0000004.json").exists() and "scores of 4 generated videos" in work.text(0)
    assert len(list(stage.glob("events*"))) == 1 and (stage / "samples" / "step_0000004.png").exists()
    checkpoints = Checkpoints(checkpoints_path(tmp_path / "run", "base"))
    assert checkpoints.steps() == [2, 4]
    assert checkpoints.meta()["processes"] == 2 and checkpoints.meta()["mesh"]["fsdp"] == 4


@pytest.mark.full
@pytest.mark.parametrize(("processes", "devices", "mesh"), [
    (4, 1, MESH), (4, 1, ()), (2, 2, ("--mesh.data", "1", "--mesh.fsdp", "2", "--mesh.tensor", "2")),
    (4, 1, ("--mesh.data", "2", "--mesh.tensor", "2")), (4, 1, ("--mesh.data", "1", "--mesh.context", "4"))])
def test_processes_on_other_meshes_are_one(tmp_path, data, alone, processes, devices, mesh):
    """Also where processes share the rows of a batch, because one clip is split over them."""
    with job.train(tmp_path / "out", tmp_path / "run", data, *mesh, processes=processes, devices=devices) as work:
        assert work.wait() == [0] * processes, "".join(work.text(i) for i in range(processes))
        check_outputs(work, processes)
    check_same(tmp_path / "run", alone)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path, data, number):
    """And one process goes on from what the two have saved."""
    run = tmp_path / "run"
    flags = ("--base.training.steps", "100000", "--base.training.checkpoint-every", "100000", *MESH)
    with job.train(tmp_path / "out", run, data, *flags, processes=2, devices=2) as work:
        work.until_step(3)
        work.processes[1].send_signal(number)
        assert work.wait() == [130, 130], work.text(0) + work.text(1)
        step = Checkpoints(checkpoints_path(run, "base")).latest()
        for index in range(2):
            assert f"process {index}: stopped at step {step} of stage 'base'; everything is saved" in work.text(index)
        assert "Traceback" not in work.text(0) + work.text(1)
    assert read_records(run / "base")[-1]["step"] == step
    text = job.train_here(run, data, steps=step + 2, devices=2)
    assert f"resuming at step {step}" in text
    records = [record for record in read_records(run / "base") if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, step + 3))


@pytest.mark.full
def test_a_process_that_dies_ends_the_other_and_the_run_goes_on(tmp_path, data, alone):
    run = tmp_path / "run"
    flags = ("--base.training.checkpoint-every", "2", "--base.training.validate-every", "0", *MESH)
    with job.train(tmp_path / "out", run, data, "--base.training.steps", "100000", *flags, processes=2,
                   devices=2) as work:
        work.until_step(5)
        work.processes[1].kill()
        assert work.wait()[0] not in (0, None), work.text()
    checkpoints = Checkpoints(checkpoints_path(run, "base"))
    step = checkpoints.latest()
    assert read_records(run / "base")[-1]["step"] - step <= 2 * 2
    with job.train(tmp_path / "again", run, data, "--base.training.steps", step + 2, *flags, processes=2,
                   devices=2) as work:
        assert work.wait() == [0, 0], work.text(0) + work.text(1)
        assert f"resuming at step {step}" in work.text()
    steps = [[row for row in logged(which) if len(row) >= 4] for which in (run, alone)]  # not what is validated
    for ours, theirs in zip(*steps, strict=False):  # of the steps that both have
        np.testing.assert_allclose(ours[:4], theirs[:4], rtol=1e-5)


def test_processes_that_disagree_all_say_so(tmp_path, data):
    """What is wrong in one process ends the others too, with its reason; nothing hangs."""
    different = ["--base.training.learning-rate", "0.5"]
    with job.train(tmp_path / "out", tmp_path / "run", data, processes=2, devices=1, different=different) as work:
        assert work.wait() == [2, 2], work.text(0) + work.text(1)
        for index in range(2):
            assert (f"vdm-jax: error: process {index}: process 1: stages.base.training.learning_rate is 0.0002 in "
                    "process 0 and 0.5 here; permitted: the same command in every process") in work.text(index)


@pytest.mark.full
def test_a_run_directory_that_process_0_refuses_is_refused_by_all(tmp_path, data):
    (tmp_path / "thesis.tex").write_text("x")
    with job.train(tmp_path / "out", tmp_path, data, processes=2, devices=1) as work:
        assert work.wait() == [2, 2], work.text(0) + work.text(1)
        for index in range(2):
            assert f"error: process {index}: {tmp_path} is not empty and not a run" in work.text(index)
