"""Conditioning frames of a cascade: a later stage that takes them sees them as they are, the stages before degraded."""

import dataclasses

import numpy as np
import pytest

from tests.generation.conftest import base_stage, random_params, upsampling_stage
from tests.refusals import refused
from vdm_jax.conditions.frame_masks import FrameMask, MaskedVideo
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.given_frames import frames_stage
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Experiment, KeyFrames

CAPTIONS = ["a red three moving left", "a blue two moving left"]


def conditioned(stage):
    return dataclasses.replace(stage, network=dataclasses.replace(stage.network, conditioning_frames=True),
                               training=Training(masking=(FrameMask(first=1),)))


def cascade(*stages):
    experiment = Experiment(name="tiny", stages=stages, data=CaptionedDigits(size=16, frames=4))
    return Generator(experiment, {stage.name: random_params(stage, i) for i, stage in enumerate(stages)})


def given(frames=4, size=16, first=1, seed=0):
    video = np.random.default_rng(seed).uniform(-0.9, 0.9, (2, frames, size, size, 3)).astype(np.float32)
    return MaskedVideo(video, (np.arange(frames) < first).astype(np.float32).reshape(1, -1, 1, 1, 1))


def test_both_stages_begin_with_the_given_frame():
    generator = cascade(conditioned(base_stage()), conditioned(upsampling_stage()))
    frames = given()
    out = generator(CAPTIONS, masked_video=frames).stages
    exact = (frames.video[:, 0] + 1) * 127.5
    np.testing.assert_allclose(out["large"][:, 0], exact, atol=0.51)
    averages = exact.reshape(2, 8, 2, 8, 2, 3).mean((2, 4))
    np.testing.assert_allclose(out["base"][:, 0], averages, atol=0.51)
    # What else is in the video given does not matter; what is given does.
    other = frames.video.copy()
    other[:, 1:] = 0.3
    same = generator(CAPTIONS, masked_video=frames._replace(video=other)).stages
    np.testing.assert_array_equal(same["large"], out["large"])
    moved = generator(CAPTIONS, masked_video=given(seed=1)).stages
    assert all(np.abs(moved[name][:, 1:].astype(int) - out[name][:, 1:]).max() > 3 for name in out)
    # Of the first stage's size, they are that stage's alone, as before.
    small = generator(CAPTIONS, masked_video=given(2, 8)).stages
    assert np.abs(small["large"][:, 0].astype(int) - out["large"][:, 0]).max() > 3


def test_only_stages_that_take_frames_get_them():
    base, large = base_stage(), upsampling_stage()
    assert frames_stage((base, large)) is base and frames_stage((base, conditioned(large))).name == "large"
    with refused("given_frames.checked_frames", "[2, 4, 16, 16, 3]", "'base'", "[2, 2, 8, 8, 3]"):
        cascade(base, large)(CAPTIONS, masked_video=given())
    # Key frames come from the stage before: they are not given.
    between = dataclasses.replace(
        conditioned(base), name="between", source=KeyFrames(frames=2, every=3),
        video=dataclasses.replace(base.video, frames=4))
    assert frames_stage((base, between)) is base


@pytest.mark.parametrize("covered", [0.0, 1.0])
def test_pixels_that_are_averages_are_given_where_all_of_them_are(covered):
    generator = cascade(conditioned(base_stage()), conditioned(upsampling_stage()))
    mask = np.zeros((1, 4, 16, 16, 1), np.float32)
    mask[:, :, :4] = 1
    mask[:, :, 4] = covered  # half of a row of the base
    frames = given()._replace(mask=mask)
    out = generator(CAPTIONS, masked_video=frames).stages
    averages = ((frames.video[:, ::2] + 1) * 127.5).reshape(2, 2, 8, 2, 8, 2, 3).mean((3, 5))
    np.testing.assert_allclose(out["base"][:, :, :2], averages[:, :, :2], atol=0.51)
    assert np.abs(out["base"][:, :, 2] - averages[:, :, 2]).max() > 2
    np.testing.assert_allclose(out["large"][:, :, :4], (frames.video[:, :, :4] + 1) * 127.5, atol=0.51)
