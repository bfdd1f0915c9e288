"""Conditions that the package does not know: a depth map as channels, a tint as a vector and marks as tokens, defined
and registered here alone, go from the clips of a data set through training to the generator."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, drop_text, register
from vdm_jax.conditions.inputs import Input, InputCondition
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.prompts import request_of
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, UNet, WordEncoder
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
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


class Marks(InputCondition):
    """Two numbers each of a few things, which layers attend to."""

    name = "marks"
    enters = "tokens"


@pytest.fixture(scope="module", autouse=True)
def registered():
    for condition in (DepthMap(), Tint(), Marks()):
        register(condition)
    yield
    for name in ("depth", "tint", "marks"):
        del CONDITIONS[name]


class Scenes:
    """Clips 2x8x8 whose pixels are 0.6 times the depth, with the sign of the tint, and 0.5 times the mean mark."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        depth = np.repeat(np.repeat(rng.choice([-0.8, 0.8], (2, 4, 4, 1)), 2, 1), 2, 2).astype(np.float32)
        tint = np.array([rng.choice([-1.0, 1.0]), 0.5], np.float32)
        marks = np.stack([np.full(3, rng.choice([-0.8, 0.8])), rng.normal(size=3)], -1).astype(np.float32)
        video = np.repeat(0.6 * depth * tint[0] + 0.5 * marks[:, 0].mean(), 3, -1)
        return {"video": np.round((video + 1) * 127.5).astype(np.uint8), "caption": "", "depth": depth, "tint": tint,
                "marks": marks}


def make(**changes):
    network = UNet(levels=(Level(channels=16, blocks=1, kernel=1, mixers=(CrossAttention(head_dim=8),)),), patch=2,
                   embedding_channels=16, groups=4, stem_kernel=1, out_kernel=1, conditions=(
                       Input(name="depth", width=1), Input(name="tint", width=2), Input(name="marks", width=2)))
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


def test_a_stage_learns_from_them_and_is_sampled_with_them(trained):
    params, losses = trained
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
    stage, clips = make(), [Scenes()[i] for i in (64, 65, 66, 67)]
    generator = Generator(Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=2)),
                          {"scenes": params}, jax.devices()[:1])
    given = request_of(stage, clips)
    assert set(given) == {"depth", "tint", "marks"}

    def made(**changes):
        return generator([""] * 4, **{**given, **changes}).videos / 127.5 - 1

    def expected(depth, tint, marks):
        return 0.6 * depth * tint[:, :1, None, None, None] + 0.5 * marks[:, :, 0].mean(1)[:, None, None, None, None]

    for name in given:  # each of them alone turns what it decides
        changed = {**given, name: -given[name]}
        assert np.abs(made(**{name: -given[name]}) - expected(**changed)).mean() < 0.2
        assert np.abs(expected(**changed) - expected(**given)).mean() > 0.5
    videos = made()
    assert np.abs(videos - expected(**given)).mean() < 0.2
    alone = generator([""], **{name: value[2:3] for name, value in given.items()}, first_index=2).videos
    np.testing.assert_allclose(alone[0] / 127.5 - 1, videos[2], atol=2 / 127)


def test_what_does_not_fit_is_refused(trained):
    generator = Generator(Experiment(name="x", stages=(make(),), data=CaptionedDigits(size=16, frames=2)),
                          {"scenes": trained[0]}, jax.devices()[:1])
    depth, tint = np.zeros((1, 2, 8, 8, 1)), np.zeros((1, 2))
    with refused("inputs.InputCondition.of_request", "[]", "'scenes'", "1"):
        generator([""], tint=tint)
    with refused("inputs.InputCondition.of_request", "marks", "[1, 2]", "[1, tokens, 2]"):
        generator([""], depth=depth, tint=tint, marks=tint)
    with refused("inputs.InputCondition.of_request", "[1, 3]", "'scenes'", "[1, 2]"):
        generator([""], depth=depth, tint=np.zeros((1, 3)))
    with refused("prompts.checked_request", "sound", "depth, marks, tint"):
        generator([""], depth=depth, tint=tint, sound=np.zeros(9))
    with refused("inputs.InputCondition.of_batch", "'scenes'", "'tint'"):
        training_inputs(make(), {"video": jnp.zeros((1, 2, 8, 8, 3), jnp.uint8), "depth": depth}, jax.random.key(0))
    with refused("Input.name", "='smell'"):
        Input(name="smell", width=1)
    with refused("Input.enters", "='channels'", "'marks'", "features, tokens"):
        Input(name="marks", width=2, enters="channels")
    for entry, named in ((Input(name="depth", width=1, enters="residuals"), "residuals"),  # to which it has no branch
                         (Input(name="marks", width=2), "CrossAttention")):  # nothing attends
        with refused("UNet.conditions", entry.name, named):
            UNet(levels=(Level(channels=8),), conditions=(entry,), resample_order="before")
    with refused("conditioning.register", "'depth'"):
        register(DepthMap())


def test_it_is_dropped_nulled_and_cut_as_it_says():
    batch = {"video": np.zeros((8, 4, 16, 16, 3), np.uint8), "tint": np.ones((8, 2), np.float32),
             "depth": np.arange(4.0, dtype=np.float32)[None, :, None, None, None] * np.ones((8, 1, 16, 16, 1)),
             "marks": np.ones((8, 3, 2), np.float32)}
    _, conditioning, _ = training_inputs(make(), batch, jax.random.key(0))
    np.testing.assert_array_equal(conditioning.inputs["depth"][:, :, 0, 0, 0], [[0, 2]] * 8)  # as frames are taken
    assert conditioning.inputs["depth"].shape == (8, 2, 8, 8, 1)
    dropped = drop_text(jax.random.key(0), conditioning, 0.5)
    assert 0 < dropped.inputs["tint"].sum() < 16
    np.testing.assert_array_equal(dropped.inputs["depth"], conditioning.inputs["depth"])
    part = jax.jit(lambda c: c.window(jnp.array(1), 1, 2))(conditioning)  # a vector of two numbers has no frames
    assert part.inputs["tint"].shape == (8, 2) and (part.inputs["depth"] == 2).all()
    assert part.inputs["marks"].shape == (8, 1, 3, 2)
    assert not CONDITIONS["marks"].null(conditioning, None)["inputs"]["marks"].any()
    images = {**batch, "images": np.zeros((8, 1, 16, 16, 3), np.uint8)}
    _, conditioning, count = training_inputs(make(), images, jax.random.key(0))
    assert count == 1 and conditioning.inputs["depth"].shape == (8, 3, 8, 8, 1)
    assert not conditioning.inputs["depth"][:, 2].any()
    with refused("Stage.training.images_per_clip", "=1", "network.conditions", "['tint', 'marks']"):
        make(training=Training(images_per_clip=1))


def test_parts_and_windows_of_clips_cut_it_with_the_video():
    """The depth is the video itself, so that both agree wherever the window lies."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (8, 4, 16, 16, 3)).astype(np.uint8)
    depth = (video / 127.5 - 1)[..., :1].astype(np.float32)
    network = dataclasses.replace(make().network, low_resolution=True, levels=(Level(channels=16),),
                                  conditions=(Input(name="depth", width=1),))
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
    assert batch["marks"].shape == (8, 1, 2)
    _, conditioning, _, _ = sampling_inputs(stage, 8, 1, make_mesh(MeshSpec(data=8)))
    assert {name: x.shape for name, x in conditioning.inputs.items()} == {
        "depth": (8, 2, 8, 8, 1), "tint": (8, 2), "marks": (8, 1, 1, 2)}
    example = example_conditioning(stage)
    assert example.inputs["depth"].shape == (1, 2, 8, 8, 1) and example.inputs["tint"].shape == (1, 2)
    assert example.inputs["marks"].shape == (1, 1, 1, 2)


def test_a_network_with_it_may_begin_as_one_without():
    """Its channels and its projection begin at zero, and the rest is copied."""
    new = make(network=dataclasses.replace(make().network, text=WordEncoder(words=("a",), length=3, width=8,
                                                                            head_dim=8)))
    old = make(network=dataclasses.replace(new.network, conditions=()))
    params = [jax.eval_shape(partial(initial_params, stage, jax.random.key(0))) for stage in (new, old)]
    plan = plan_inflation(new.network, params[0], old.network, params[1])
    assert plan.stem == (0, 1, 2) and set(plan.zero_initialised) == {
        "/embedding/condition_tint/kernel", "/embedding/condition_tint/bias", "/embedding/condition_marks/kernel"}


def test_tokens_join_those_of_the_text():
    """What they say reaches the output of both assemblies, with text and without, and nothing of it does where they are
    null; another order of them changes nothing."""
    rng = np.random.default_rng(0)
    marks = jnp.asarray(rng.normal(size=(2, 1, 3, 2)), jnp.float32)
    latent = LatentUNet(in_channels=3, out_channels=3, widths=(8,), blocks=1, attention=(True,), heads=(2,),
                        only_cross_attention=(False,), token_channels=6, groups=4, use_linear_projection=True)
    entry, embedded = Input(name="marks", width=2), EmbeddedText(width=6)
    own = make().network
    text = {"embeddings": jnp.asarray(rng.normal(size=(2, 1, 4, 6)), jnp.float32),
            "text_mask": jnp.ones((2, 1, 4), bool)}
    for network, given in ((LatentNetwork(unet=latent, conditions=(entry,)), {}),
                           (LatentNetwork(unet=latent, text=embedded, conditions=(entry,)), text),
                           (dataclasses.replace(own, conditions=(entry,)), {}),
                           (dataclasses.replace(own, text=embedded, conditions=(entry,)), text)):
        module, z = network_module(network), jnp.asarray(rng.normal(size=(2, 2, 8, 8, 3)), jnp.float32)

        @jax.jit
        def out(params, marks, given, z=z, module=module):
            return module.apply({"params": params}, z, jnp.zeros(2), Conditioning(inputs={"marks": marks}, **given))

        stage = make(network=network, sampling=Sampling(threshold=None))
        shapes = jax.eval_shape(partial(initial_params, stage, jax.random.key(0)))
        params = jax.tree.map(lambda a, rng=rng: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes)
        first = out(params, marks, given)
        assert np.abs(out(params, marks.at[0].add(1.0), given)[0] - first[0]).max() > 1e-3
        np.testing.assert_array_equal(out(params, marks.at[0].add(1.0), given)[1], first[1])
        np.testing.assert_allclose(out(params, marks[:, :, ::-1], given), first, atol=1e-5)
