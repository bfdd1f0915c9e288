"""Lumiere in miniature: what its networks are at first, and the whole way from images to sampled videos."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from flax.traverse_util import flatten_dict

import vdm_jax
from vdm_jax.commands.configs import config_folder, load_module
from vdm_jax.commands.main import main
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.runs.directory import export, load_stage, open_run
from vdm_jax.runs.records import read_records
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.training.loop import Trainer
from vdm_jax.training.report import Report
from vdm_jax.weights.inflation import plan_inflation

TINY = load_module(config_folder() / "lumiere" / "_tiny.py")
CONDITIONED = load_module(config_folder() / "lumiere" / "conditioned.py")
STEPS = 20


def into(image, video, stages):
    """Initial parameters of a video network that begins as the image network."""
    plan = plan_inflation(stages[1].network, video, stages[0].network, image)
    assert not plan.zero_initialised and all("inflation" in name or "sample_" in name for name in plan.new)
    return plan.apply(video, image)


@pytest.mark.parametrize("place", [pytest.param(0, id="base", marks=pytest.mark.full), pytest.param(1, id="spatial")])
def test_every_nth_frame_is_the_image_networks(place):
    image, video = (experiment.stages[place] for experiment in (TINY.images(), TINY.videos()))
    assert video.network.frame_reduction == 2
    video, rng = video.trained(), np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(1, *video.video.shape)), jnp.float32)
    level, conditioning = jnp.zeros(1), example_conditioning(video)
    shapes = jax.eval_shape(lambda: initial_params(image, jax.random.key(0)))
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32), shapes)
    fresh = jax.jit(lambda key: initial_params(video, key))(jax.random.key(0, impl="rbg"))

    def run(stage, params, z, conditioning):
        return jax.jit(lambda p, z, c: SpaceTimeUNet(stage.network).apply({"params": p}, z, level, c))(
            params, z, conditioning)

    out = run(video, into(params, fresh, (image, video)), z, conditioning)
    low = conditioning.low_resolution
    frames = conditioning.replace(low_resolution=None if low is None else low[:, ::2])
    expected = run(image, params, z[:, ::2], frames)
    np.testing.assert_allclose(out[:, ::2], expected, atol=1e-4)
    assert np.std(expected) > 0.1


def test_a_conditioned_base_begins_as_the_base():
    """It has the same layers; its first kernel has new channels for the given video and the mask."""
    first = TINY.videos().stages[0]
    known = CONDITIONED.conditioned(first)
    ours, base = (jax.eval_shape(lambda stage=stage: initial_params(stage, jax.random.key(0)))
                  for stage in (known, first))
    plan = plan_inflation(known.network, ours, first.network, base)
    assert plan.stem == (0, 1, 2) and not plan.zero_initialised and not plan.new
    assert ours["stem"]["kernel"].shape[3] == 7


def train(experiment, run):
    """Train all stages of an experiment on one device; the losses by stage."""
    open_run(run, experiment)
    losses = {}
    for stage in experiment.stages:
        report = Report(rich.console.Console(file=io.StringIO()))
        Trainer(experiment, stage, run, report, devices=jax.devices()[:1]).train()
        losses[stage.name] = [r["loss"] for r in read_records(run / stage.name) if "loss" in r]
    return losses


@pytest.mark.full
def test_from_images_to_sampled_videos(tmp_path, monkeypatch):
    """Image networks are trained, then what is added to them with the rest frozen; sampled, saved, read, stylised."""
    monkeypatch.chdir(tmp_path)
    images, videos = TINY.images(2 * STEPS), TINY.videos(STEPS, str(tmp_path / "images"))
    for losses in train(images, tmp_path / "images").values():
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    run = tmp_path / "videos"
    learnt = {stage.name: load_stage(tmp_path / "images", stage) for stage in images.stages}
    losses = train(videos, run)
    assert np.mean(losses["base"][-5:]) < 0.95 * np.mean(losses["base"][:5])
    for stage in videos.stages:
        after = flatten_dict(load_stage(run, stage), sep="/")
        for name, value in flatten_dict(learnt[stage.name], sep="/").items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    generator = vdm_jax.load(run)
    made = generator(["a red 3 moving left"] * 8, seed=1)
    assert [v.shape for v in made.stages.values()] == [(8, 8, 8, 8, 3), (8, 8, 16, 16, 3)]
    export(generator, tmp_path / "exported")
    np.testing.assert_array_equal(vdm_jax.load(tmp_path / "exported")(["a red 3 moving left"] * 8, seed=1).videos,
                                  made.videos)
    assert main(["sample", str(run), "a red 3 moving left", "--style", str(tmp_path / "images"), "--style-weight",
                 "0.7", "--last", "base", "--out", "styled.gif"]) == 0
