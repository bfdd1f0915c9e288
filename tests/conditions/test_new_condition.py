"""Conditions that the package does not know: a depth map as channels and a tint as a vector, defined and registered
here alone, go from the clips of a data set through training to the generator."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.conditioning import CONDITIONS, drop_text, register
from vdm_jax.conditions.inputs import Input, InputCondition
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.prompts import request_of
from vdm_jax.networks.config import Level, UNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.inputs import sampling_inputs, training_batch
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax.training.loop import device_batch
from vdm_jax.training.state import create_state
from vdm_jax.training.step import compile_train_step
from vdm_jax.weights.inflation import plan_inflation


class DepthMap(InputCondition):
    """How far every pixel is."""

    name = "depth"
    enters = "channels"


class Tint(InputCondition):
    """Two numbers of a clip, which captions' guidance leaves out too."""

    name = "tint"
    enters = "vector"
    guidance = "prompt"


@pytest.fixture(scope="module", autouse=True)
def registered():
    for condition in (DepthMap(), Tint()):
        register(condition)
    yield
    for name in ("depth", "tint"):
        del CONDITIONS[name]


class Scenes:
    """Clips 2x8x8 whose pixels are the depth times the first number of the tint."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        depth = np.repeat(np.repeat(rng.choice([-0.8, 0.8], (2, 4, 4, 1)), 2, 1), 2, 2).astype(np.float32)
        tint = np.array([rng.choice([-1.0, 1.0]), 0.5], np.float32)
        video = np.repeat(depth * tint[0], 3, -1)
        return {"video": np.round((video + 1) * 127.5).astype(np.uint8), "caption": "", "depth": depth, "tint": tint}


def make(**changes):
    network = UNet(levels=(Level(channels=16, blocks=1, kernel=1),), patch=2, embedding_channels=16, groups=4,
                   stem_kernel=1, out_kernel=1, conditions=(Input(name="depth", width=1), Input(name="tint", width=2)))
    values = {"name": "scenes", "video": VideoSpec(frames=2, height=8, width=8), "network": network,
              "process": Process(prediction="x"),
              "training": Training(batch_size=16, learning_rate=1e-2, warmup_steps=2, ema_decay=0.9, text_dropout=0.1),
              "sampling": Sampling(steps=3, threshold=None, batch_size=4)}
    return Stage(**values | changes)


@pytest.fixture(scope="module")
def trained():
    """The averaged parameters after 80 steps, and the losses."""
    stage, mesh = make(), make_mesh(MeshSpec(data=1), jax.devices()[:1])
    pipeline, state = Pipeline(Scenes(), batch_size=16, seed=0), create_state(stage, 0, mesh)
    step, losses = compile_train_step(stage, mesh), []
    for number in range(80):
        state, metrics = step(state, device_batch(pipeline.batch(number), mesh))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.ema), losses


def test_a_stage_learns_from_it_and_is_sampled_with_it(trained):
    params, losses = trained
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
    stage, clips = make(), [Scenes()[i] for i in (64, 65, 66, 67)]
    generator = Generator(Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=2)),
                          {"scenes": params}, jax.devices()[:1])
    given = request_of(stage, clips)
    assert set(given) == {"depth", "tint"}
    videos = generator([""] * 4, **given).videos / 127.5 - 1
    real = np.stack([clip["video"] for clip in clips]) / 127.5 - 1
    assert np.abs(videos - real).mean() < 0.3 < np.abs(videos + real).mean()
    other = generator([""] * 4, depth=-given["depth"], tint=given["tint"]).videos / 127.5 - 1
    assert np.abs(other + real).mean() < 0.3
    alone = generator([""], depth=given["depth"][2:3], tint=given["tint"][2:3], first_index=2).videos
    np.testing.assert_allclose(alone[0] / 127.5 - 1, videos[2], atol=2 / 127)


def test_what_does_not_fit_is_refused(trained):
    generator = Generator(Experiment(name="x", stages=(make(),), data=CaptionedDigits(size=16, frames=2)),
                          {"scenes": trained[0]}, jax.devices()[:1])
    depth, tint = np.zeros((1, 2, 8, 8, 1)), np.zeros((1, 2))
    with refused("inputs.InputCondition.of_request", "[]", "'scenes'", "1"):
        generator([""], tint=tint)
    with refused("inputs.InputCondition.of_request", "[1, 3]", "'scenes'", "[1, 2]"):
        generator([""], depth=depth, tint=np.zeros((1, 3)))
    with refused("prompts.checked_request"):
        generator([""], depth=depth, tint=tint, sound=np.zeros(9))
    with refused("inputs.InputCondition.of_batch", "'scenes'", "'tint'"):
        training_inputs(make(), {"video": jnp.zeros((1, 2, 8, 8, 3), jnp.uint8), "depth": depth}, jax.random.key(0))
    with refused("Input.name", "='sound'"):
        Input(name="sound", width=1)
    with refused("conditioning.register", "'depth'"):
        register(DepthMap())


def test_it_is_dropped_nulled_and_cut_as_it_says():
    batch = {"video": np.zeros((8, 4, 16, 16, 3), np.uint8), "tint": np.ones((8, 2), np.float32),
             "depth": np.arange(4.0, dtype=np.float32)[None, :, None, None, None] * np.ones((8, 1, 16, 16, 1))}
    _, conditioning, _ = training_inputs(make(), batch, jax.random.key(0))
    np.testing.assert_array_equal(conditioning.inputs["depth"][:, :, 0, 0, 0], [[0, 2]] * 8)  # as frames are taken
    assert conditioning.inputs["depth"].shape == (8, 2, 8, 8, 1)
    dropped = drop_text(jax.random.key(0), conditioning, 0.5)
    assert 0 < dropped.inputs["tint"].sum() < 16
    np.testing.assert_array_equal(dropped.inputs["depth"], conditioning.inputs["depth"])
    part = jax.jit(lambda c: c.window(jnp.array(1), 1, 2))(conditioning)  # a vector of two numbers has no frames
    assert part.inputs["tint"].shape == (8, 2) and (part.inputs["depth"] == 2).all()
    images = {**batch, "images": np.zeros((8, 1, 16, 16, 3), np.uint8)}
    _, conditioning, count = training_inputs(make(), images, jax.random.key(0))
    assert count == 1 and conditioning.inputs["depth"].shape == (8, 3, 8, 8, 1)
    assert not conditioning.inputs["depth"][:, 2].any()
    with refused("Stage.training.images_per_clip", "=1", "network.conditions", "['tint']"):
        make(training=Training(images_per_clip=1))


def test_parts_and_windows_of_clips_cut_it_with_the_video():
    """The depth is the video itself, so that both agree wherever the window lies."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (8, 4, 16, 16, 3)).astype(np.uint8)
    depth = (video / 127.5 - 1)[..., :1].astype(np.float32)
    network = dataclasses.replace(make().network, low_resolution=True, conditions=(Input(name="depth", width=1),))
    stage = make(network=network, video=VideoSpec(frames=4, height=16, width=16),
                 source=LowResolution(frames=4, height=8, width=8), training=Training(crop=(8, 8), frames=2))
    x, conditioning, _ = training_inputs(stage, {"video": video, "depth": depth}, jax.random.key(0))
    assert x.shape == (8, 2, 8, 8, 3)
    np.testing.assert_allclose(conditioning.inputs["depth"], x[..., :1], atol=1e-5)


def test_planning_and_configs_know_it():
    stage = make()
    assert from_json(Stage, to_json(stage)) == stage
    batch, _ = training_batch(stage, CaptionedDigits(size=16, frames=4), 8, 1)
    assert batch["depth"].shape == (8, 4, 16, 16, 1) and batch["tint"].shape == (8, 2)
    _, conditioning, _, _ = sampling_inputs(stage, 8, 1, make_mesh(MeshSpec(data=8)))
    assert {name: x.shape for name, x in conditioning.inputs.items()} == {"depth": (8, 2, 8, 8, 1), "tint": (8, 2)}
    example = example_conditioning(stage)
    assert example.inputs["depth"].shape == (1, 2, 8, 8, 1) and example.inputs["tint"].shape == (1, 2)


def test_a_network_with_it_may_begin_as_one_without():
    """Its channels and its projection begin at zero, and the rest is copied."""
    new, old = make(), make(network=dataclasses.replace(make().network, conditions=()))
    params = [jax.eval_shape(partial(initial_params, stage, jax.random.key(0))) for stage in (new, old)]
    plan = plan_inflation(new.network, params[0], old.network, params[1])
    assert plan.stem == (0, 1, 2) and set(plan.zero_initialised) == {
        "/embedding/condition_tint/kernel", "/embedding/condition_tint/bias"}
