"""What a stage sees: targets, degraded and enlarged videos, noise augmentation, captions, appended images."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.texts import text_conditioning
from tests.refusals import refused
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.low_resolution import enlarge, low_resolution
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.stages.inputs import target_video, training_inputs
from vdm_jax.stages.stage import LowResolution, VideoSpec

VIDEO = VideoSpec(frames=4, height=16, width=16)
SOURCE = LowResolution(frames=2, height=8, width=4)


@pytest.fixture(scope="module")
def clips():
    """Three clips of 8x32x32 and two stills for each, uint8."""
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.integers(0, 256, (3, 8, 32, 32, 3)), jnp.uint8),
            jnp.asarray(rng.integers(0, 256, (3, 2, 32, 32, 3)), jnp.uint8))


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.integers(0, 6, (3, 6))), jnp.asarray(rng.integers(0, 6, (3, 2, 6)))


def block_mean(video, height, width):
    """Mean over blocks of pixels, in float64."""
    b, t, h, w, c = video.shape
    return np.asarray(video, float).reshape(b, t, height, h // height, width, w // width, c).mean((3, 5))


def test_target_is_every_kth_frame_with_pixels_averaged_over_areas(clips):
    out = target_video(clips[0], VIDEO)
    assert out.dtype == jnp.float32 and -1 <= out.min() < out.max() <= 1
    np.testing.assert_allclose(out, block_mean(np.asarray(clips[0])[:, ::2] / 127.5 - 1, 16, 16), atol=1e-5)


def test_degrading_is_what_the_stage_before_would_have_made(clips):
    """Degrading the target of a stage gives the target of the stage before it."""
    before = VideoSpec(frames=SOURCE.frames, height=SOURCE.height, width=SOURCE.width)
    low = SOURCE.degrade(target_video(clips[0], VIDEO))
    assert low.shape == (3, 2, 8, 4, 3)
    np.testing.assert_allclose(low, target_video(clips[0], before), atol=1e-6)


@pytest.mark.parametrize("fill", ["repeat", "blank", "linear"])
@pytest.mark.parametrize("resize", ["nearest", "bilinear"])
def test_enlarging_keeps_the_frames_where_they_were_taken(fill, resize, clips):
    source = dataclasses.replace(SOURCE, fill=fill, resize=resize)
    low = source.degrade(target_video(clips[0], VIDEO))
    large = enlarge(low, source, VIDEO)
    assert large.shape == (3, 4, 16, 16, 3)
    if resize == "nearest":
        np.testing.assert_allclose(source.degrade(large), low, atol=1e-6)
    pixels = enlarge(low, source, dataclasses.replace(VIDEO, frames=2))
    middle = pixels.mean(1)
    between = {"repeat": pixels, "blank": jnp.zeros_like(pixels),
               "linear": jnp.stack([middle, pixels[:, 1]], axis=1)}  # the last one is held
    np.testing.assert_allclose(large[:, ::2], pixels, atol=1e-6)
    np.testing.assert_allclose(large[:, 1::2], between[fill], atol=1e-6)


def test_padding_is_masked():
    conditioning = text_conditioning(jnp.array([[[3, 1, 0, 0]]]))
    np.testing.assert_array_equal(conditioning.text_mask, [[[True, True, False, False]]])


def test_augmentation_noise_has_the_level_the_network_is_told(experiment):
    """`alpha x + sigma noise` with alpha^2 = sigmoid(level); noise of a sample from its own key."""
    stage = experiment.stage("large")
    low = jnp.ones((3, 2, 8, 8, 3))
    keys, level = jax.random.split(jax.random.key(0), 3), jnp.array([-2.0, 1.0, 5.0])
    out = Conditioning(**low_resolution(low, stage, keys, level))
    np.testing.assert_array_equal(out.augmentation, level)
    assert out.low_resolution.shape == (3, 4, 16, 16, 3)
    alpha = np.sqrt(1 / (1 + np.exp(-np.asarray(level, float))))
    noise = (np.asarray(out.low_resolution) - alpha[:, None, None, None, None]) / np.sqrt(1 - alpha**2)[
        :, None, None, None, None]
    noise = noise.reshape(3, -1)  # 3072 numbers each
    np.testing.assert_allclose(noise.mean(1), 0, atol=0.08)
    np.testing.assert_allclose(noise.std(1), 1, atol=0.06)
    np.testing.assert_allclose(np.corrcoef(noise) - np.eye(3), 0, atol=0.08)
    alone = Conditioning(**low_resolution(low[1:2], stage, keys[1:2], level[1:2]))
    np.testing.assert_allclose(alone.low_resolution[0], out.low_resolution[1], atol=1e-6)


def test_inputs_of_a_base_stage(experiment, clips, tokens):
    stage = experiment.stage("base")
    batch = {"video": clips[0], "tokens": tokens[0]}
    x, conditioning, images = training_inputs(stage, batch, jax.random.key(0))
    np.testing.assert_array_equal(x, target_video(clips[0], stage.video))
    assert images == 0 and conditioning.low_resolution is None
    np.testing.assert_array_equal(conditioning.tokens, tokens[0][:, None])
    np.testing.assert_array_equal(conditioning.text_mask, tokens[0][:, None] > 0)
    np.testing.assert_array_equal(conditioning.scalars["fps"], [4.0, 4.0, 4.0])


def test_inputs_with_appended_images(experiment, clips, tokens):
    stage = experiment.stage("base")
    batch = {"video": clips[0], "images": clips[1], "tokens": tokens[0], "image_tokens": tokens[1]}
    x, conditioning, images = training_inputs(stage, batch, jax.random.key(0))
    assert images == 2 and x.shape == (3, 2 + 2, 8, 8, 3)
    np.testing.assert_array_equal(x[:, :2], target_video(clips[0], stage.video))
    np.testing.assert_allclose(x[:, 2:], block_mean(np.asarray(clips[1]) / 127.5 - 1, 8, 8), atol=1e-5)
    np.testing.assert_array_equal(conditioning.tokens[:, 0], tokens[0])  # captions in the order of the frames
    np.testing.assert_array_equal(conditioning.tokens[:, 1:], tokens[1])


def test_inputs_of_a_stage_with_a_source(experiment, clips):
    stage = experiment.stage("large")
    clean = NoiseAugmentation(training_logsnr=(25.0, 25.0))
    quiet = dataclasses.replace(stage, source=dataclasses.replace(stage.source, augmentation=clean))
    x, conditioning, _ = training_inputs(quiet, {"video": clips[0]}, jax.random.key(0))
    expected = enlarge(stage.source.degrade(x), stage.source, stage.video)
    np.testing.assert_allclose(conditioning.low_resolution, expected, atol=1e-4)
    assert conditioning.tokens is None  # this network reads no text
    levels = np.concatenate([training_inputs(stage, {"video": clips[0]}, key)[1].augmentation
                             for key in jax.random.split(jax.random.key(1), 20)])
    assert 0 <= levels.min() < 1 and 5 < levels.max() <= 6 and len(set(levels.tolist())) == 60


def test_the_key_decides_levels_and_noise(experiment, clips):
    stage = experiment.stage("large")
    one, same, other = (training_inputs(stage, {"video": clips[0]}, jax.random.key(k))[1] for k in (0, 0, 1))
    np.testing.assert_array_equal(one.low_resolution, same.low_resolution)
    assert np.abs(one.augmentation - other.augmentation).min() > 0
    assert np.abs(one.low_resolution - other.low_resolution).max() > 0.1


def test_embeddings_instead_of_words(experiment, clips):
    stage = experiment.stage("base")
    stage = dataclasses.replace(stage, network=dataclasses.replace(stage.network, text=EmbeddedText(width=7)))
    batch = {"video": clips[0], "embeddings": jnp.ones((3, 5, 7)), "text_mask": jnp.ones((3, 5), bool)}
    _, conditioning, _ = training_inputs(stage, batch, jax.random.key(0))
    assert conditioning.embeddings.shape == (3, 1, 5, 7) and conditioning.text_mask.shape == (3, 1, 5)


def test_images_bring_their_embeddings_as_further_groups(experiment, clips):
    stage = experiment.stage("base")
    stage = dataclasses.replace(stage, network=dataclasses.replace(stage.network, text=EmbeddedText(width=7)))
    batch = {"video": clips[0], "images": clips[0][:, :2], "embeddings": jnp.zeros((3, 5, 7), jnp.float16),
             "text_mask": jnp.zeros((3, 5), bool), "image_embeddings": jnp.ones((3, 2, 5, 7), jnp.float16),
             "image_text_mask": jnp.ones((3, 2, 5), bool)}
    _, conditioning, images = training_inputs(stage, batch, jax.random.key(0))
    assert images == 2 and conditioning.embeddings.dtype == jnp.float32
    np.testing.assert_array_equal(conditioning.embeddings[:, :, 0, 0], [[0, 1, 1]] * 3)
    np.testing.assert_array_equal(conditioning.text_mask.any(-1), [[False, True, True]] * 3)


def test_a_batch_without_text_is_an_error(experiment, clips):
    with refused("text.Text.of_batch", "'base'"):
        training_inputs(experiment.stage("base"), {"video": clips[0]}, jax.random.key(0))


def test_clips_that_do_not_divide_are_an_error(experiment, clips):
    with refused("inputs.take_frames", "7", "2", "4", "6"):
        training_inputs(experiment.stage("base"), {"video": clips[0][:, :7]}, jax.random.key(0))
