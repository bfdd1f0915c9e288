"""A run goes from mesh to mesh: what is restored has the same bits, and training continues as if nothing had been."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

import vdm_jax
from tests.multiprocess.job import train_here
from tests.refusals import refused
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import checkpoints_path, export, load_stage, read_config
from vdm_jax.runs.records import read_records
from vdm_jax.training.state import abstract_state
from vdm_jax.weights.safetensors import load_params, save_params

LEGS = ((8, MeshSpec(data=1, fsdp=8)), (4, MeshSpec()), (2, MeshSpec(fsdp=2)), (1, MeshSpec()),
        (8, MeshSpec(data=2, fsdp=2, tensor=2)))
QUIET = {"validate_every": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def restored(run, mesh):
    """The last state of a run on a mesh."""
    target = abstract_state(read_config(run).stage("base"), mesh)
    state, _ = Checkpoints(checkpoints_path(run, "base")).restore(target)
    assert jax.tree.map(lambda a: a.sharding, state) == jax.tree.map(lambda a: a.sharding, target)
    return state


def assert_same(state, other):
    """The same bits, wherever they are."""
    for ours, theirs in zip(jax.tree.leaves(state.replace(key=jax.random.key_data(state.key))),
                            jax.tree.leaves(other.replace(key=jax.random.key_data(other.key))), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def losses(run):
    return {record["step"]: record["loss"] for record in read_records(run / "base") if "loss" in record}


@pytest.mark.full
def test_eight_four_two_one_and_eight_devices_again(tmp_path, data):
    run, whole = tmp_path / "run", tmp_path / "whole"
    one = make_mesh(MeshSpec(), jax.devices()[:1])
    for leg, (count, spec) in enumerate(LEGS):
        mesh = make_mesh(spec, jax.devices()[:count])
        if leg:
            assert_same(restored(run, mesh), restored(run, one))
        text = train_here(run, data, steps=2 * (leg + 1), mesh=spec, devices=count, **QUIET)
        assert (f"resuming at step {2 * leg}" if leg else "initialising") in text
    train_here(whole, data, steps=2 * len(LEGS), mesh=LEGS[0][1], devices=8, **QUIET)
    ours, theirs = losses(run), losses(whole)
    assert list(ours) == list(theirs) == list(range(1, 2 * len(LEGS) + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, data):
    """A run whose parameters are split over eight devices."""
    run = tmp_path_factory.mktemp("runs") / "spread"
    train_here(run, data, mesh=LEGS[0][1], devices=8, **QUIET)
    return run


def test_sharded_parameters_become_safetensors(sharded, tmp_path):
    """From the devices directly, and by the export of a run that was trained sharded."""
    state = restored(sharded, make_mesh(LEGS[0][1]))
    split = [leaf for leaf in jax.tree.leaves(state.ema) if not leaf.sharding.is_fully_replicated]
    assert split
    save_params(tmp_path / "direct.safetensors", state.ema, {})
    export(vdm_jax.load(sharded), tmp_path / "exported")
    shapes = jax.eval_shape(lambda: state.ema)
    direct, exported = (load_params(path, shapes)[0] for path in (
        tmp_path / "direct.safetensors", tmp_path / "exported" / "base" / "params.safetensors"))
    for ours, one, two in zip(jax.tree.leaves(state.ema), jax.tree.leaves(direct), jax.tree.leaves(exported),
                              strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_a_damaged_checkpoint_is_skipped_when_asked_for(sharded, tmp_path, data, caplog):
    """By who samples and by who trains; without being asked it is refused, with the reason and the way on."""
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    checkpoints, stage = Checkpoints(checkpoints_path(run, "base")), read_config(run).stage("base")
    assert checkpoints.steps() == [2, 4] and checkpoints.newest_intact() == 4
    (checkpoints.directory / "4" / "meta" / "metadata").unlink()
    message = ("checkpoints.Checkpoints._verified", f"{checkpoints.directory / '4'} ", "meta/metadata", "missing",
               "permitted: --damaged skip")
    with refused(*message) as error:
        load_stage(run, stage)
    assert str(error.value).endswith(": 2")  # the intact earlier step
    earlier, _ = checkpoints.restore_subtree("ema", step=2)
    assert_equal_leaves(load_stage(run, stage, "skip"), earlier)
    assert "checkpoint 2 is used, because newer ones are damaged (4: meta/metadata is missing)" in caplog.text
    with refused(*message) as error:
        train_here(run, data, steps=6, devices=8, **QUIET)
    assert str(error.value).endswith(": 2")
    text = train_here(run, data, steps=6, devices=8, damaged="skip", **QUIET)
    assert "checkpoint 4 is damaged and set aside: meta/metadata is missing" in text and "resuming at step 2" in text
    assert checkpoints.steps() == [4, 6] and (checkpoints.directory / "4.damaged").is_dir()
    assert list(losses(run)) == [1, 2, 3, 4, 5, 6]


def assert_equal_leaves(tree, other):
    for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_set_aside_where_nothing_is_intact(sharded, tmp_path, data):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    checkpoints = Checkpoints(checkpoints_path(run, "base"))
    for step in (2, 4):
        (checkpoints.directory / str(step) / "meta" / "metadata").unlink()
    message = "checkpoints.Checkpoints._verified", f"{checkpoints.directory / '4'} ", "meta/metadata", "missing"
    with refused(*message) as error:
        train_here(run, data, steps=6, devices=8, damaged="skip", **QUIET)
    assert "--damaged" not in str(error.value)  # it has been asked for
    assert checkpoints.steps() == [2, 4]
