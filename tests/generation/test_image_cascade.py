"""A cascade of images like Imagen's from the first step to pictures: it learns, is saved and samples after that."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from tests.conditions.texts import text_conditioning
from tests.generation.tiny_imagen import get_config
from vdm_jax.generation.one_stage import sample_stage
from vdm_jax.runs.directory import export, load, open_run
from vdm_jax.runs.records import read_records
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.parameters import initial_params
from vdm_jax.training.loop import Trainer
from vdm_jax.training.report import Report
from vdm_jax.training.step import stage_loss

CAPTIONS = ("a red three", "a blue seven")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All three stages, trained."""
    run, data = tmp_path_factory.mktemp("runs") / "imagen", tmp_path_factory.mktemp("data")
    experiment = open_run(run, get_config())
    for stage in experiment.stages:
        report = Report(rich.console.Console(file=io.StringIO()))
        Trainer(experiment, stage, run, report, data, devices=jax.devices()[:1]).train()
    return run


def test_every_stage_trains_on_images_or_windows_and_samples_whole_images():
    """Traced, not compiled: the loss and the sampler of all stages."""
    low = None
    for stage in get_config().stages:
        batch = {"video": jnp.zeros((2, 2, 32, 32, 3), jnp.uint8), "tokens": jnp.ones((2, 8), int)}
        params = jax.eval_shape(lambda key, stage=stage: initial_params(stage, key), jax.random.key(0))
        target = jax.eval_shape(lambda b, key, s=stage: training_inputs(s, b, key)[0], batch, jax.random.key(0))
        assert target.shape[1:4] == {"base": (1, 8, 8)}.get(stage.name, (1, 16, 16))
        loss, _ = jax.eval_shape(lambda p, key, b=batch, s=stage: stage_loss(s, p, b, key), params, jax.random.key(0))
        assert loss.shape == ()
        text = text_conditioning(batch["tokens"][:, None])
        low = jax.eval_shape(lambda p, keys, x, s=stage, t=text: sample_stage(s, s.sampling, p, keys, t, x),
                             params, jax.random.split(jax.random.key(0), 2), low)
        assert low.shape == (2, *stage.video.shape)


@pytest.mark.full
def test_every_stage_learns(run):
    for stage in get_config().stages:
        losses = [record["loss"] for record in read_records(run / stage.name) if "loss" in record]
        assert len(losses) == 30 and np.isfinite(losses).all()
        assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:3]), stage.name


@pytest.mark.full
def test_restored_and_exported_weights_sample_whole_images_through_all_stages(run, tmp_path):
    generator = load(run, devices=jax.devices()[:1])
    images = generator(CAPTIONS, seed=1)
    assert {name: x.shape for name, x in images.stages.items()} == {
        "base": (2, 1, 8, 8, 3), "sr_16": (2, 1, 16, 16, 3), "sr_32": (2, 1, 32, 32, 3)}
    assert (images.videos[0] != images.videos[1]).any()
    export(generator, tmp_path)
    again = load(tmp_path, devices=jax.devices()[:1])(CAPTIONS, seed=1)
    np.testing.assert_array_equal(again.videos, images.videos)
