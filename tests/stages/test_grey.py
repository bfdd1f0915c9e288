"""Stages of grey values: what they learn from, what they make, what their density counts, what they refuse."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.frame_masks import masked_first_frame
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.diffusion.likelihood import BIN, bits_per_dim, dequantised, log_density
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import CaptionedDigitsSource
from vdm_jax.evaluation.likelihood import measure_bits
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.kinds import network_module
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.video.arrays import grey, to_float

DATA = CaptionedDigits(size=16, frames=2, test_clips=4)
STAGE = Stage(
    name="base", video=VideoSpec(frames=2, height=16, width=16, channels=1), process=Process(),
    network=UNet(levels=(Level(channels=4, blocks=1),), out_channels=1, groups=2, patch=2),
    training=Training(text_dropout=0.0), sampling=Sampling(steps=2, guidance=0.0, batch_size=2))


@pytest.fixture(scope="module")
def clips():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def params():
    return initial_params(STAGE, jax.random.key(0))


def with_noise(**more):
    return dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, dequantise=True), **more)


def test_a_grey_stage_learns_from_the_luma(clips):
    x, _, _ = training_inputs(STAGE, {"video": clips}, jax.random.key(0))
    luma = np.asarray(to_float(clips)) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(x, luma[..., None], atol=1e-6)
    same = to_float(jnp.repeat(clips[..., :1], 3, axis=-1))
    np.testing.assert_array_equal(grey(same), same[..., :1])


def test_noise_on_values_is_as_wide_as_one(clips):
    plain, _, _ = training_inputs(STAGE, {"video": clips.at[..., 1:].set(clips[..., :1])}, jax.random.key(0))
    batch = {"video": clips.at[..., 1:].set(clips[..., :1])}
    one, other = (np.asarray(training_inputs(with_noise(), batch, jax.random.key(k))[0]) for k in (0, 1))
    change = (one - np.asarray(plain)) / BIN
    assert np.abs(change).max() < 0.5001 and abs(change.std() - 1 / math.sqrt(12)) < 0.02
    assert (one != other).mean() > 0.9


def test_videos_are_rgb_of_equal_values(params):
    generator = Generator(Experiment(name="tiny", stages=(STAGE,), data=DATA), {"base": params}, jax.devices()[:1])
    videos = generator(("", ""), seed=0).videos
    assert videos.shape == (2, 2, 16, 16, 3) and (videos == videos[..., :1]).all() and videos.std() > 0


def test_bits_are_of_grey_values_and_do_not_depend_on_noise_in_training(params):
    source, key = CaptionedDigitsSource(DATA, "test"), jax.random.fold_in(jax.random.key(0), 0)
    found, = measure_bits(generator_of(STAGE, params), source, count=2, steps=2)
    assert found == measure_bits(generator_of(with_noise(), params), source, count=2, steps=2)[0]
    batch = {"video": jnp.stack([source[i]["video"] for i in range(2)])}
    _, value_key, sign_key = jax.random.split(key, 3)
    x, conditioning, _ = training_inputs(STAGE, batch, key)
    denoise = STAGE.process.denoiser(
        lambda z, logsnr: network_module(STAGE.network).apply({"params": params}, z, logsnr, conditioning))
    density = log_density(STAGE.process, denoise, dequantised(x, value_key), sign_key, steps=2)
    np.testing.assert_allclose(found.value, bits_per_dim(density, 2 * 16 * 16).mean(), rtol=1e-4)


def generator_of(stage, params):
    return Generator(Experiment(name="tiny", stages=(stage,), data=DATA), {"base": params}, jax.devices()[:1])


def test_a_grey_stage_is_given_no_videos(params):
    made = generator_of(STAGE, params)
    with refused("VideoSpec.channels", "longer videos", "'base'", "permitted: 3"):
        made.extend(("a",), frames=4, overlap=1)
    with refused("VideoSpec.channels", "given frames", "permitted: 3"):
        made(("a",), masked_video=masked_first_frame(np.zeros((1, 16, 16, 3), np.float32), 2))


def test_what_is_of_rgb_is_refused():
    with refused("Stage.network.out_channels", "network.out_channels=3", "permitted: 1"):
        dataclasses.replace(STAGE, network=dataclasses.replace(STAGE.network, out_channels=3))
    with refused("VideoSpec.channels", "source=", "permitted: 3"):
        dataclasses.replace(STAGE, network=dataclasses.replace(STAGE.network, low_resolution=True),
                            source=LowResolution(frames=2, height=8, width=8))
    with refused("VideoSpec.channels", "conditioning_frames=True", "permitted: 3"):
        dataclasses.replace(STAGE, network=dataclasses.replace(STAGE.network, conditioning_frames=True))
    with refused("VideoSpec.channels", "stage 'large'", "permitted: 3"):
        large = dataclasses.replace(
            STAGE, name="large", video=VideoSpec(frames=2, height=16, width=16),
            source=LowResolution(frames=2, height=16, width=16),
            network=UNet(levels=(Level(channels=4),), groups=2, low_resolution=True))
        Experiment(name="two", stages=(STAGE, large), data=DATA)
    with refused("VideoSpec.channels", "2", "1, 3"):
        VideoSpec(frames=1, height=8, width=8, channels=2)
