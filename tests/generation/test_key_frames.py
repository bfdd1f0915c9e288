"""A cascade of three stages: key frames, the frames between them, and more pixels frame by frame."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import base_stage, random_params
from tests.refusals import refused
from vdm_jax.attention.patterns import Temporal
from vdm_jax.conditions.frame_masks import FrameMask, masked_first_frame
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.long_video.plan import Autoregressive, KeyFramesFirst
from vdm_jax.generation.prompts import encoded
from vdm_jax.networks.config import EmbeddedText, Level, SelfAttention, UNet
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, KeyFrames, LowResolution, Stage, VideoSpec

CAPTIONS = ("a red three moving left", "a blue two")
KNOWN = (FrameMask(every=3, weight=3.0), FrameMask(first=1))


def between(**more) -> Stage:
    """4 frames from 2."""
    network = UNet(levels=(Level(channels=16, blocks=1, mixers=(SelfAttention(pattern=Temporal(), head_dim=8),)),),
                   patch=4, embedding_channels=16, conditioning_frames=True, scalars=("fps",))
    return Stage(**{"name": "between", "video": VideoSpec(frames=4, height=8, width=8, fps=12), "network": network,
                    "source": KeyFrames(frames=2, every=3), "process": Process(prediction="x"),
                    "training": Training(masking=KNOWN), "sampling": Sampling(steps=2, batch_size=4), **more})


def larger(frames=None, shared_noise=True) -> Stage:
    """16x16 from 8x8, without anything over frames."""
    network = UNet(levels=(Level(channels=16, blocks=1),), patch=4, embedding_channels=16, low_resolution=True)
    return Stage(name="larger", video=VideoSpec(frames=4, height=16, width=16, fps=12), network=network,
                 source=LowResolution(frames=4, height=8, width=8), process=Process(prediction="x"),
                 training=Training(frames=frames),
                 sampling=Sampling(sampler=DDIM(eta=0.5), steps=2, batch_size=4, shared_noise=shared_noise))


def cascade(*stages: Stage) -> Generator:
    experiment = Experiment(name="three", stages=stages, data=CaptionedDigits(size=16, frames=4))
    return Generator(experiment, {stage.name: random_params(stage, i) for i, stage in enumerate(stages)})


@pytest.fixture(scope="module")
def generator() -> Generator:
    return cascade(base_stage(), between(), larger())


@pytest.fixture(scope="module")
def batch():
    video = np.random.default_rng(0).integers(0, 256, (8, 4, 8, 8, 3))
    return {"video": jnp.asarray(video, jnp.uint8), "tokens": jnp.ones((8, 6), int)}


def test_key_frames_block_by_block_and_the_frames_between_them(generator):
    """Blocks of two key frames; every gap is filled in by the second stage, and leaves them as they are."""
    generator = Generator(generator.experiment, generator.params, jax.devices()[:1])
    long = generator.long(CAPTIONS, frames=10, method=KeyFramesFirst(overlap=1), seed=3, at_once=6)
    assert long.stage == "between" and long.fps == 12 and long.videos.shape == (2, 10, 8, 8, 3) and long.complete
    keys = generator.long(CAPTIONS, frames=4, method=Autoregressive(overlap=1), seed=3, at_once=6).videos
    np.testing.assert_array_equal(long.videos[:, ::3], keys)
    assert all(len(np.unique(long.videos[0, frame])) > 2 for frame in (1, 2, 4, 5, 7, 8))
    with refused("frames", "=9", "7, 10, ..."):
        generator.long(CAPTIONS, frames=9, method=KeyFramesFirst(overlap=1))
    with refused("sampling.LongJob._checked", "'between'", "inpainting.method='network'", "'reconstruction'"):
        low = np.zeros((2, 10, 4, 4, 3), np.float32)
        generator.long(CAPTIONS, frames=10, method=KeyFramesFirst(overlap=1), low=low)
    with refused("long_video.stages", "larger", "KeyFrames"):
        KeyFramesFirst().of_cascade((base_stage(), larger()))
    rounds = KeyFramesFirst(overlap=1, fills=((2, 4), (3, 4))).rounds(49, 2)
    assert [len(round_) for round_ in rounds] == [1] * 3 + [3, 6]


def test_only_stages_that_read_embeddings_have_captions_encoded():
    """The stage that fills in frames reads none."""
    reads = dataclasses.replace(base_stage(), network=dataclasses.replace(base_stage().network,
                                                                          text=EmbeddedText(width=2)))
    vectors, said = {"embeddings": np.ones((1, 3, 2), np.float32)}, []

    def encoder(captions, negative, pictures):
        said.append(captions)
        return vectors

    for stage, found in ((reads, vectors), (between(), {})):
        assert encoded(encoder, (stage,), ("a",), None, None, {}) == found
    assert said == [("a",)] and encoded(None, (reads,), ("a",), None, None, {}) == {}
    experiment = Experiment(name="two", stages=(reads, between()), data=None)
    both = Generator(experiment, {}, jax.devices()[:1], encoder=encoder)
    assert dict(both.request(("a",), {}, (between(),)).given) == {}
    with refused("prompts.encoded", "negative", "reads embeddings"):
        encoded(encoder, (between(),), ("a",), "blurred", None, {})


def test_frames_are_filled_in_between_key_frames(generator):
    out = generator(CAPTIONS)
    videos = out.stages
    assert [v.shape[1:4] for v in videos.values()] == [(2, 8, 8), (4, 8, 8), (4, 16, 16)]
    np.testing.assert_array_equal(videos["between"][:, ::3], videos["base"])
    assert np.abs(videos["between"][:, 1].astype(int) - videos["between"][:, 0]).max() > 3
    assert out.fps == {"base": 4.0, "between": 12.0, "larger": 12.0}


def test_all_stages_are_told_the_frame_rate_in_proportion(generator):
    usual, other = generator(CAPTIONS, last="between"), generator(CAPTIONS, fps=1.0, last="between")
    assert other.fps == {"base": 1.0, "between": 3.0}
    assert np.abs(other.stages["base"].astype(int) - usual.stages["base"]).max() > 2
    same = generator(CAPTIONS, fps=4.0, last="between")
    np.testing.assert_allclose(same.videos.astype(int), usual.videos, atol=1)
    for fps in (0.0, -1.0):
        with refused("fps", f"fps={fps}"):
            generator(CAPTIONS, fps=fps)
    with refused("fps", "'fps'"):
        cascade(dataclasses.replace(base_stage(), network=dataclasses.replace(base_stage().network, scalars=())))(
            CAPTIONS, fps=4.0)


def test_the_network_between_animates_a_picture_too(generator):
    pictures = jnp.asarray(np.random.default_rng(1).uniform(-0.9, 0.9, (2, 8, 8, 3)), jnp.float32)
    out = generator(CAPTIONS, first="between", masked_video=masked_first_frame(pictures, 4))
    assert list(out.stages) == ["between", "larger"]
    assert np.abs(out.stages["between"][:, 0] / 127.5 - 1 - pictures).max() < 0.01
    with refused("generator.Generator.__call__", "'between'", "2"):
        generator(CAPTIONS, first="between")
    with refused("first", "='larger'", "last='base'"):
        generator(CAPTIONS, first="larger", last="base")


def test_with_shared_noise_equal_frames_come_out_equal():
    from vdm_jax.conditions.conditioning import Conditioning
    from vdm_jax.generation.one_stage import sample_keys, sample_stage

    low = jnp.broadcast_to(jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 1, 8, 8, 3), (2, 4, 8, 8, 3))
    params, keys = random_params(larger(), 0), sample_keys(0, jnp.arange(2), 0)
    outs = []
    for shared in (True, False):
        stage = larger(shared_noise=shared)
        run = jax.jit(lambda stage=stage: sample_stage(stage, stage.sampling, params, keys, Conditioning(), low))
        outs.append(np.asarray(run()))
    np.testing.assert_allclose(outs[0], outs[0][:, :1].repeat(4, 1), atol=1e-5)
    assert np.abs(outs[1] - outs[1][:, :1]).max() > 0.1
    assert np.abs(outs[0][0] - outs[0][1]).max() > 0.1  # videos have noise of their own


def test_training_inputs_of_key_frames(batch):
    x, conditioning, _ = training_inputs(between(), batch, jax.random.key(0))
    frames = np.asarray(conditioning.conditioning_mask)[..., 0, 0, 0]
    assert {tuple(row) for row in frames.tolist()} == {(1, 0, 0, 1), (1, 0, 0, 0)}
    assert conditioning.low_resolution is None and x.shape == (8, 4, 8, 8, 3)
    rates = between(training=Training(masking=KNOWN, frame_rates=FrameRates()))
    told = training_inputs(rates, batch | {"frame_rate": jnp.arange(8.0)}, jax.random.key(0))[1]
    np.testing.assert_array_equal(told.scalars["fps"], np.arange(8.0))
    np.testing.assert_array_equal(conditioning.scalars["fps"], np.full(8, 12.0))


def test_clips_are_thinned_to_key_frames(batch):
    base = dataclasses.replace(base_stage(), training=Training(key_frames=True))
    whole = training_inputs(dataclasses.replace(between(), network=dataclasses.replace(
        between().network, patch=8)), batch, jax.random.key(0))[0]
    np.testing.assert_array_equal(training_inputs(base, batch, jax.random.key(0))[0], whole[:, ::3])
    three = dataclasses.replace(base, video=VideoSpec(frames=3, height=8, width=8))
    with refused("training.key_frames", "3", "4", "5", "7"):
        training_inputs(three, batch, jax.random.key(0))


def test_training_on_still_frames_of_clips(batch):
    stage = larger(frames=1)
    large = {"video": jnp.repeat(jnp.repeat(batch["video"], 2, 2), 2, 3)}
    x, conditioning, _ = training_inputs(stage, large, jax.random.key(0))
    assert x.shape == (8, 1, 16, 16, 3) and conditioning.low_resolution.shape == x.shape
    every = np.asarray(large["video"]) / 127.5 - 1
    found = [int(np.abs(every[b] - np.asarray(x)[b]).max((1, 2, 3)).argmin()) for b in range(8)]
    assert all(np.abs(every[b, t] - x[b, 0]).max() < 1e-5 for b, t in enumerate(found)) and len(set(found)) > 1
    picture = training_inputs(stage, {"video": large["video"][:, 2:3]}, jax.random.key(0))[0]
    np.testing.assert_allclose(picture[:, 0], every[:, 2], atol=1e-5)


def test_stages_are_data():
    curriculum = Training(masking=KNOWN, frame_rates=FrameRates())
    for stage in (between(), larger(frames=1), between(training=curriculum)):
        assert from_json(Stage, to_json(stage)) == stage


def test_stages_that_cannot_be():
    for make, message in (
            (lambda: between(video=VideoSpec(frames=5, height=8, width=8)), ("Stage.video.frames", "=5", "KeyFrames")),
            (lambda: between(network=dataclasses.replace(between().network, conditioning_frames=False),
                             training=Training()),
             ("Stage.network.conditioning_frames", "=False", "KeyFrames")),
            (lambda: KeyFrames(frames=1), ("KeyFrames.frames", "=1", ">= 2")),
            (lambda: larger(frames=5), ("Stage.training.frames", "=5", "video.frames=4")),
            (lambda: between(training=Training(masking=KNOWN, frames=1)), ("Stage.source.frames", "=4")),
            (lambda: dataclasses.replace(larger(), training=Training(frame_rates=FrameRates())),
             ("Stage.training.frame_rates", "network.scalars=", "'fps'")),
            (lambda: cascade(base_stage(), between(source=KeyFrames(frames=4, every=3), video=VideoSpec(
                frames=10, height=8, width=8))), ("Experiment", "'between'", "4x8x8", "'base'"))):
        with refused(*message):
            make()
