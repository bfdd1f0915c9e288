"""Run directories: made once, taken up again by the same config only, found by name, loaded and exported."""

from __future__ import annotations

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.configuration import from_data, to_data
from vdm_jax.diffusion.consistency import Boundary
from vdm_jax.diffusion.samplers import Consistency
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.runs import directory
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import (
    checkpoints_path,
    differences,
    export,
    find_run,
    load,
    load_stage,
    open_run,
    read_config,
)
from vdm_jax.stages.distillation import ConsistencyTraining
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Experiment
from vdm_jax.training.state import TrainState


def with_training(experiment, **changes):
    """The experiment with other training settings of its first stage."""
    first, *rest = experiment.stages
    first = dataclasses.replace(first, training=dataclasses.replace(first.training, **changes))
    return dataclasses.replace(experiment, stages=(first, *rest))


def message_of(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---------------------------------------------------------------------------------------------- the directory


def test_a_run_is_made_and_taken_up_again(experiment, tmp_path):
    run = tmp_path / "runs" / "tiny"
    assert open_run(run, experiment) == experiment
    assert sorted(os.listdir(run)) == ["config.json", "run.json"]
    assert read_config(run) == experiment
    assert open_run(run, experiment) == experiment


@pytest.mark.parametrize("changes", [{"steps": 77}, {"workers": 2, "log_every": 1}, {"keep": 9, "sample_every": 3}])
def test_how_long_and_how_to_report_may_change(experiment, tmp_path, changes):
    open_run(tmp_path, experiment)
    longer = with_training(experiment, **changes)
    assert open_run(tmp_path, longer) == longer == read_config(tmp_path)


def test_the_mesh_may_change(experiment, tmp_path):
    """A run may go on with another number of devices."""
    open_run(tmp_path, experiment)
    other = dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, data=2, fsdp=4))
    assert open_run(tmp_path, other) == other == read_config(tmp_path)


def test_another_config_is_refused_and_the_first_difference_named(experiment, tmp_path):
    open_run(tmp_path, experiment)
    before = (tmp_path / "config.json").read_bytes()
    base = experiment.stages[0]
    deeper = dataclasses.replace(base, network=dataclasses.replace(base.network, embedding_channels=32))
    others = {
        "seed is 5 there and 6 now": dataclasses.replace(experiment, seed=6),
        "stages.base.training.learning_rate is 0.0002 there and 0.001 now":
            with_training(experiment, learning_rate=1e-3),
        "stages.base.training.batch_size is 16 there and 8 now": with_training(experiment, steps=3, batch_size=8),
        "stages.base.network.embedding_channels is 16 there and 32 now":
            dataclasses.replace(experiment, stages=(deeper, experiment.stages[1])),
        "data.frames is 4 there and 8 now": dataclasses.replace(experiment, data=dataclasses.replace(
            experiment.data, frames=8)),
        "stages.base.sampling.steps is 3 there and 4 now": dataclasses.replace(experiment, stages=(
            dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, steps=4)), experiment.stages[1])),
    }
    for difference, other in others.items():
        assert message_of(open_run, tmp_path, other) == (
            f"run directory {tmp_path} belongs to another config: {difference}; permitted: the same config, or another "
            "directory (--run)")
    assert (tmp_path / "config.json").read_bytes() == before and sorted(os.listdir(tmp_path)) == [
        "config.json", "run.json"]


def with_value(experiment, field, value):
    """The experiment with another value of a field, named by its place in the data."""
    data = to_data(experiment)
    *parents, last = [int(part) if part.isdigit() else part for part in field.split(".")]
    functools.reduce(lambda place, part: place[part], parents, data)[last] = value
    return from_data(Experiment, data)


@pytest.mark.parametrize(("field", "value"), [
    ("stages.0.network.remat", "dots"), ("stages.0.network.sharded_axis", "height"),
    ("stages.0.network.levels.0.mixers.0.kernel", "xla"), ("stages.0.network.levels.0.mixers.0.context", "all_gather"),
    ("stages.1.network.levels.0.mixers.0.context", "ulysses"),
    ("stages.0.training.accumulation", 2), ("stages.0.training.steps", 20_000), ("stages.0.training.keep", 5),
    ("stages.0.training.log_every", 7), ("stages.0.training.checkpoint_every", 7),
    ("stages.0.training.validate_every", 7), ("stages.0.training.sample_every", 7), ("stages.0.training.workers", 3),
    ("stages.0.training.evaluation.clips", 20), ("mesh.fsdp", 2), ("mesh.context", 2), ("validation_split", "train")])
def test_how_a_run_is_computed_and_shown_may_change(experiment, tmp_path, field, value):
    open_run(tmp_path, experiment)
    other = with_value(experiment, field, value)
    assert other != experiment
    assert open_run(tmp_path, other) == read_config(tmp_path) == other


@pytest.mark.parametrize(("field", "value"), [
    ("stages.0.process.schedule.logsnr_max", 15.0), ("stages.0.process.prediction", "v"),
    ("stages.0.process.sigma_data", 1.0), ("stages.0.process.error", "absolute"),
    ("stages.0.network.levels.0.channels", 32), ("stages.0.network.levels.0.kernel", 3),
    ("stages.0.network.embedding_channels", 32), ("stages.0.network.dtype", "bfloat16"),
    ("stages.0.network.norm_over", "clip"), ("stages.0.network.patch", 2),
    ("stages.0.network.levels.0.mixers.0.head_dim", 4), ("stages.0.network.text.width", 16),
    ("stages.1.source.augmentation.training_logsnr", [0.0, 5.0]),
    ("stages.0.training.optimizer", "adafactor"), ("stages.0.training.ema_decay", 0.5),
    ("stages.0.training.text_dropout", 0.5), ("stages.0.training.warmup_steps", 3),
    ("stages.0.training.decay", True), ("data.objects", [1, 1]), ("data.seed", 3), ("seed", 6)])
def test_what_decides_what_is_learnt_may_not_change_and_is_named(experiment, tmp_path, field, value):
    open_run(tmp_path, experiment)
    before = (tmp_path / "config.json").read_bytes()
    named = field.replace("stages.0.", "stages.base.").replace("stages.1.", "stages.large.")
    assert f" belongs to another config: {named}" in message_of(
        open_run, tmp_path, with_value(experiment, field, value))
    assert (tmp_path / "config.json").read_bytes() == before


def test_the_steps_of_a_rate_that_decays_to_their_end_may_not_change(experiment, tmp_path):
    open_run(tmp_path, with_training(experiment, decay=True))
    assert "stages.base.training.steps is 10000 there and 20000 now" in message_of(
        open_run, tmp_path, with_training(experiment, decay=True, steps=20_000))


def test_the_steps_of_consistency_training_may_not_change(experiment, tmp_path):
    stage = dataclasses.replace(experiment.stages[0], sampling=Sampling(
        sampler=Consistency(), consistency=Boundary(), steps=2), training=dataclasses.replace(
            experiment.stages[0].training, distillation=ConsistencyTraining(), validate_every=0))
    experiment = dataclasses.replace(experiment, stages=(stage, *experiment.stages[1:]))
    open_run(tmp_path, experiment)
    assert "stages.base.training.steps is 10000 there and 20000 now" in message_of(
        open_run, tmp_path, with_training(experiment, steps=20_000))
    open_run(tmp_path, with_training(experiment, keep=9))


def test_a_folder_of_something_else_is_refused_and_left_alone(experiment, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert message_of(open_run, tmp_path, experiment) == (
        f"{tmp_path} is not empty and not a run (no config.json); permitted: a new or empty directory (--run)")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_in_the_place_of_a_run_is_refused(experiment, tmp_path):
    path = tmp_path / "notes"
    path.write_text("x")
    assert message_of(open_run, path, experiment) == (
        f"{path} is a file; permitted: a new or empty directory (--run)")


def test_a_config_that_is_missing_or_damaged_is_named(experiment, tmp_path):
    assert message_of(read_config, tmp_path) == (
        f"{tmp_path} is not a run: {tmp_path / 'config.json'} does not exist; permitted: a directory made by "
        "'vdm-jax train'")
    open_run(tmp_path, experiment)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text[: len(text) // 2])
    assert message_of(read_config, tmp_path).startswith(f"{tmp_path / 'config.json'} is not JSON: ")
    data = json.loads(text)
    data["stages"][0]["network"]["patch"] = "four"
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert message_of(read_config, tmp_path) == (
        f"{tmp_path / 'config.json'}.stages[0].network.patch='four' is not valid; permitted: >= 1")


def test_differences(experiment):
    data = to_data(experiment)
    assert list(differences(data, data)) == []
    longer = to_data(with_training(experiment, steps=3, b1=0.5))
    assert list(differences(data, longer)) == [
        ("stages.base.training.steps", 10_000, 3), ("stages.base.training.b1", 0.9, 0.5)]
    assert [name for name, *_ in differences(data, {**data, "stages": data["stages"][:1]})] == ["stages"]
    assert list(differences({"kind": "A", "x": 1}, {"kind": "B", "x": 1}, "f")) == [
        ("f", {"kind": "A", "x": 1}, {"kind": "B", "x": 1})]


# ---------------------------------------------------------------------------------------------- finding and loading


def test_finding_by_path_and_by_name(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(directory, "shipped_names", lambda: ())  # weights that come with the package: test_shipped
    assert message_of(find_run, "tiny") == (
        "run 'tiny' was not found; permitted: a run directory, a folder of diffusers, or one of: none yet (train one "
        "first)")
    open_run(tmp_path / "runs" / "mine", experiment)
    open_run(tmp_path / "elsewhere", experiment)
    assert find_run("mine").resolve() == tmp_path / "runs" / "mine"
    assert find_run("runs/mine").resolve() == tmp_path / "runs" / "mine"
    assert find_run(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert message_of(find_run, "other") == (
        "run 'other' was not found; permitted: a run directory, a folder of diffusers, or one of: runs/mine")


def test_stages_load_as_their_averages(experiment, params, tmp_path):
    """Of a checkpoint, the EMA; of a stage that is not trained, nothing; of a run with no stage at all, an error."""
    open_run(tmp_path, experiment)
    assert message_of(load, tmp_path) == (
        f"run {tmp_path} has no trained stage yet; permitted: a run with at least one checkpoint")
    ema = params["base"]
    state = TrainState(step=jnp.asarray(4), params=jax.tree.map(jnp.zeros_like, ema), opt_state=(), ema=ema,
                       key=jax.random.key(0))
    with Checkpoints(checkpoints_path(tmp_path, "base")) as checkpoints:
        checkpoints.save(4, state, {})
    assert_trees_equal(load_stage(tmp_path, experiment.stages[0]), ema)
    assert load_stage(tmp_path, experiment.stages[1]) is None
    generator = load(tmp_path, jax.devices()[:1])
    assert list(generator.params) == ["base"] and generator.experiment == experiment
    assert_trees_equal(generator.params["base"], ema)


def test_an_exported_run_loads_like_a_run(experiment, params, tmp_path):
    generator = Generator(experiment, params, jax.devices()[:1])
    export(generator, tmp_path / "full")
    assert sorted(str(p.relative_to(tmp_path / "full")) for p in (tmp_path / "full").rglob("*.*")) == [
        "base/params.safetensors", "config.json", "large/params.safetensors"]
    back = load(tmp_path / "full", jax.devices()[:1])
    assert back.experiment == experiment
    assert_trees_equal(back.params, generator.params)
    export(generator, tmp_path / "half", dtype="float16")
    half = load(tmp_path / "half", jax.devices()[:1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), half.params, generator.params)
    sizes = [(tmp_path / kind / "large" / "params.safetensors").stat().st_size for kind in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    a, b = (g("a red two", last="base").videos.astype(int) for g in (half, generator))
    assert np.abs(a - b).max() <= 4  # of 255


def test_exported_weights_that_are_damaged_are_named(experiment, params, tmp_path):
    export(Generator(experiment, params, jax.devices()[:1]), tmp_path)
    path = tmp_path / "large" / "params.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert str(path) in message_of(load, tmp_path)
