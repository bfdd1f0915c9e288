"""NUWA-XL in miniature: gradients of one network on all masks and time scales, and a video of two levels."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from vdm_jax.commands.configs import load_config
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.digits.clips import caption_words
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.long_video.plan import NuwaXL
from vdm_jax.generation.long_video.script import Script
from vdm_jax.networks.config import CrossAttention, FrameInjection, Level, TemporalConvolution
from vdm_jax.stages.inputs import device_fields
from vdm_jax.stages.parameters import initial_params
from vdm_jax.training.step import draw, stage_loss

pytest.importorskip("sklearn")


def small(experiment):
    """The config with fewer channels and frames, and one level."""
    stage = experiment.stages[0]
    mixers = (TemporalConvolution(), FrameInjection(), CrossAttention(head_dim=4))
    levels = (Level(channels=8, blocks=1, mixers=mixers),)
    text = dataclasses.replace(stage.network.text, words=caption_words(), width=16)
    network = dataclasses.replace(stage.network, levels=levels, middle=(), embedding_channels=8, groups=2, patch=4,
                                  text=text)
    stage = dataclasses.replace(
        stage, network=network, video=dataclasses.replace(stage.video, frames=4),
        sampling=dataclasses.replace(stage.sampling, steps=2, guidance=0.0))
    data = dataclasses.replace(experiment.data, length=28, frames=4, strides=(1, 3, 9), act=9)
    return dataclasses.replace(experiment, stages=(stage,), data=data)


def test_the_configs_can_make_what_they_say():
    experiment = load_config("nuwa_xl/digits")
    full = experiment.stages[0]
    for frames in (8, 50, 344):
        NuwaXL().check(full, full.sampling, frames)
    assert set(experiment.data.strides) == {1, 7, 49}
    flintstones = load_config("nuwa_xl/flintstones").stages[0]
    NuwaXL().check(flintstones, flintstones.sampling, 3376)


def test_one_network_learns_from_frames_and_masks_of_all_levels():
    experiment = small(load_config("nuwa_xl/digits"))
    (stage,) = experiment.stages
    source = experiment.data.open("train", None)
    pipeline = Pipeline(source, batch_size=16, seed=0, tokenize=stage.network.text.tokenize, random_starts=True)
    batch = device_fields(pipeline.batch(0))
    params = initial_params(stage, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.05, params)  # past the layers that start at zero
    masks = np.asarray(draw(stage, batch, jax.random.key(1)).conditioning.conditioning_mask)[:, :, 0, 0, 0]
    assert {tuple(mask) for mask in masks} == {(0, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 1)}
    gradients = jax.jit(jax.grad(lambda p, b: stage_loss(stage, p, b, jax.random.key(1))[0]))(params, batch)
    injected = [np.abs(np.asarray(leaf)).max() for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
                if "frame_injection" in jax.tree_util.keystr(path)]
    assert len(injected) == 3 * 4 and min(injected) > 0  # blocks down and up learn from frames and mask


@pytest.mark.full
def test_it_makes_a_story_of_two_levels():
    experiment = small(load_config("nuwa_xl/digits"))
    story = experiment.data.open("train", None).story(0)
    params = {"base": initial_params(experiment.stages[0], jax.random.key(0))}
    script = Script(tuple((time, caption) for time, caption in story.script() if time < 10))
    made = Generator(experiment, params, jax.devices()[:1]).long([script], frames=10, method=NuwaXL())
    assert made.complete and made.videos.shape == (1, 10, 16, 16, 3)
