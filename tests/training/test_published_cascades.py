"""Shipped cascades in miniature: every stage learns, is saved, and the whole makes videos."""

from __future__ import annotations

import io

import jax
import numpy as np
import pytest
import rich.console

import vdm_jax
from tests.training.miniature import miniature
from vdm_jax.commands.configs import load_config
from vdm_jax.runs.directory import open_run
from vdm_jax.runs.records import read_records
from vdm_jax.training.loop import Trainer
from vdm_jax.training.report import Report

CASCADES = ("vdm/ucf101", "vdm/bair", "vdm/text_small", "imagen_video/cascade")


@pytest.mark.parametrize("name", CASCADES)
def test_a_miniature_has_the_kinds_of_layers_of_the_config(name):
    whole, small = load_config(name), miniature(name)
    for large, stage in zip(whole.stages, small.stages, strict=True):
        kinds = [[[type(mixer) for mixer in level.mixers] for level in s.network.levels] for s in (large, stage)]
        assert kinds[0] == kinds[1] and large.process == stage.process
        assert large.sampling.sampler == stage.sampling.sampler and large.sampling.threshold == stage.sampling.threshold
        assert bool(large.training.images_per_clip) == bool(stage.training.images_per_clip)
        assert large.network.resample_order == stage.network.resample_order


@pytest.mark.full
@pytest.mark.parametrize("name", CASCADES)
def test_every_stage_learns_and_the_whole_makes_videos(name, tmp_path):
    run, report = tmp_path / "run", Report(rich.console.Console(file=io.StringIO()))
    experiment = open_run(run, miniature(name))
    for stage in experiment.stages:
        Trainer(experiment, stage, run, report, tmp_path / "data", devices=jax.devices()[:1]).train()
        losses = [record["loss"] for record in read_records(run / stage.name) if "loss" in record]
        assert np.isfinite(losses).all() and np.mean(losses[-8:]) < np.mean(losses[:4]), stage.name
    videos = vdm_jax.load(run, jax.devices()[:1])(["a red three", "a blue seven"], seed=1).videos
    assert videos.shape == (2, *experiment.stages[-1].video.shape) and videos.std() > 0
    again = vdm_jax.load(run, jax.devices()[:1])(["a red three", "a blue seven"], seed=1).videos
    np.testing.assert_array_equal(videos, again)
