"""What is given of a video: drawn in training, given in sampling, told to the network."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import base_stage, random_params
from tests.refusals import refused
from vdm_jax.conditions.frame_masks import (
    BoxMask,
    CinemagraphMask,
    FrameMask,
    MaskedVideo,
    NoMask,
    draw_masked_video,
    masked_first_frame,
)
from vdm_jax.configuration import from_json, to_json
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.one_stage import inpainting_method
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.options import Inpainting, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

EVERY = (NoMask(), FrameMask(first=1), FrameMask(last=2), FrameMask(first=1, last=1), FrameMask(every=3),
         BoxMask(), BoxMask(inside=True), CinemagraphMask(weight=2.0))
CAPTIONS = ("a red three moving left", "a blue two")


def observing(masking=EVERY, **training) -> Stage:
    """The base stage with four frames and a network that is conditioned on frames."""
    base = base_stage()
    return dataclasses.replace(
        base, video=VideoSpec(frames=4, height=8, width=8, fps=4),
        network=dataclasses.replace(base.network, conditioning_frames=True),
        training=Training(masking=masking, **training))


@pytest.fixture(scope="module")
def generator() -> Generator:
    stage = observing()
    experiment = Experiment(name="one", stages=(stage,), data=CaptionedDigits(size=16, frames=4))
    return Generator(experiment, {"base": random_params(stage, 0)})


@pytest.fixture(scope="module")
def clip():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize(("strategy", "frames"), [
    (NoMask(), ()), (FrameMask(first=2), (0, 1)), (FrameMask(last=3), (4, 5, 6)),
    (FrameMask(every=3), (0, 3, 6)), (FrameMask(first=1, last=1), (0, 6)),
    (FrameMask(every=5, last=1), (0, 5, 6))], ids=range(6))
def test_known_frames(strategy, frames):
    mask = np.broadcast_to(strategy.mask(jax.random.key(0), 7, 4, 4), (7, 4, 4, 1))
    np.testing.assert_array_equal(mask.mean((1, 2, 3)), [t in frames for t in range(7)])


def test_boxes_have_the_sides_asked_for_and_go_everywhere():
    cases = [kind(side=(0.25, 0.5), **more) for kind, more in (
        (BoxMask, {"inside": True}), (BoxMask, {}), (CinemagraphMask, {}))]
    draw = jax.jit(jax.vmap(lambda key: [case.mask(key, 3, 8, 16) for case in cases]))
    inside, outside, still = (np.asarray(mask)[..., 0] for mask in draw(jax.random.split(jax.random.key(0), 200)))
    inside, outside = inside[:, 0], outside[:, 0]
    heights, widths = inside.max(2).sum(1), inside.max(1).sum(1)
    np.testing.assert_array_equal(inside.sum((1, 2)), heights * widths)  # a box
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (2, 4, 4, 8)
    assert (inside.max(0) == 1).all()
    np.testing.assert_array_equal(outside, 1 - inside)
    assert still.shape[1:] == (3, 8, 16) and (still[:, 0] == 1).all()
    np.testing.assert_array_equal(still[:, 1:], np.stack([outside, outside], axis=1))


def test_each_clip_draws_its_case_by_weight_from_its_own_key(clip):
    cases = (FrameMask(first=1, weight=3.0), FrameMask(last=2))
    keys = jax.random.split(jax.random.key(1), 400)
    x = jnp.broadcast_to(clip, (400, *clip.shape))
    masked_video = jax.jit(lambda x, keys: draw_masked_video(cases, x, keys))(x, keys)
    count = np.asarray(masked_video.mask.sum((1, 2, 3, 4))) / 64
    assert set(count) == {1.0, 2.0} and abs((count == 1).mean() - 0.75) < 0.07
    alone = draw_masked_video(cases, x[7:8], keys[7:8])
    np.testing.assert_array_equal(alone.mask[0], masked_video.mask[7])


def test_training_inputs_hold_what_is_known_and_nothing_else(clip):
    rng = np.random.default_rng(2)
    batch = {"video": jnp.asarray(rng.integers(0, 256, (16, 4, 8, 8, 3)), jnp.uint8), "tokens": jnp.ones((16, 6), int),
             "images": jnp.asarray(rng.integers(0, 256, (16, 2, 8, 8, 3)), jnp.uint8),
             "image_tokens": jnp.ones((16, 2, 6), int), "frame_valid": jnp.ones((16, 4), bool).at[:, 3].set(False)}
    stage = observing((FrameMask(first=2, last=1), BoxMask()), images_per_clip=2)
    x, conditioning, images = training_inputs(stage, batch, jax.random.key(0))
    assert images == 2 and conditioning.conditioning_frames.shape == (16, 6, 8, 8, 3)
    mask = np.asarray(conditioning.conditioning_mask)
    assert mask.shape == (16, 6, 8, 8, 1) and mask[:, :3].mean() > 0.3
    assert mask[:, 3:].max() == 0  # neither of the padded frame nor of the appended images
    np.testing.assert_array_equal(conditioning.conditioning_frames, np.asarray(x) * mask)
    other = training_inputs(stage, batch, jax.random.key(1))[1]
    assert (np.asarray(other.conditioning_mask) != mask).any()


def test_a_still_picture_is_told_where_nothing_moves():
    video = jnp.asarray(np.random.default_rng(2).integers(0, 256, (3, 4, 8, 8, 3)), jnp.uint8)
    x, conditioning, _ = training_inputs(observing((CinemagraphMask(),)),
                                         {"video": video, "tokens": jnp.ones((3, 6), int)}, jax.random.key(0))
    mask = np.asarray(conditioning.conditioning_mask)
    np.testing.assert_array_equal(conditioning.conditioning_frames, np.asarray(x)[:, :1] * mask)
    assert mask[:, 0].min() == 1 and mask[:, 1:].min() == 0


def test_the_network_is_told_when_sampling(generator, clip):
    stage = generator.experiment.stages[0]
    assert inpainting_method(stage, stage.sampling) == "network"
    pictures = np.stack([clip[0], -clip[1]])
    masked_video = masked_first_frame(jnp.asarray(pictures), 4)
    told, free = generator(CAPTIONS, masked_video=masked_video), generator(CAPTIONS)
    assert np.abs(told.videos[:, 0] / 127.5 - 1 - pictures).max() < 0.01  # comes out as it is
    assert np.abs(told.videos[:, 1:].astype(int) - free.videos[:, 1:]).max() > 5  # and changes the rest
    elsewhere = MaskedVideo(masked_video.video.at[:, 1:].set(0.3), masked_video.mask)
    np.testing.assert_array_equal(generator(CAPTIONS, masked_video=elsewhere).videos, told.videos)
    nothing = MaskedVideo(masked_video.video, jnp.zeros_like(masked_video.mask))
    np.testing.assert_array_equal(generator(CAPTIONS, masked_video=nothing).videos, free.videos)


def test_the_network_goes_on_block_by_block(generator, clip):
    masked_video = masked_first_frame(jnp.stack([clip[0], clip[1]]), 4)
    video = generator.extend(CAPTIONS, frames=7, overlap=1, masked_video=masked_video).videos
    np.testing.assert_array_equal(video[:, :4], generator(CAPTIONS, masked_video=masked_video).videos)
    other = generator.extend(CAPTIONS, frames=7, overlap=1).videos
    assert np.abs(video[:, 4:].astype(int) - other[:, 4:]).max() > 5


def test_observations_are_data():
    stage = observing()
    assert from_json(Stage, to_json(stage)) == stage


def test_bad_values(generator, clip):
    for make, message in (
            (lambda: FrameMask(), ("FrameMask", "last=0", "every=0")),
            (lambda: FrameMask(first=-1), ("FrameMask.first", "=-1")),
            (lambda: NoMask(weight=0.0), ("NoMask.weight", "=0.0", "> 0")),
            (lambda: BoxMask(side=(0.5, 0.25)), ("BoxMask.side", "=(0.5, 0.25)")),
            (lambda: observing(()), ("Stage.network.conditioning_frames", "=True", "training.masking")),
            (lambda: dataclasses.replace(base_stage(), training=Training(masking=EVERY)),
             ("Stage.network.conditioning_frames", "=False")),
            (lambda: dataclasses.replace(base_stage(), sampling=dataclasses.replace(
                base_stage().sampling, inpainting=Inpainting(method="network"))),
                ("Stage.sampling.inpainting.method", "='network'")),
            (lambda: generator(CAPTIONS, masked_video=MaskedVideo(clip[None], jnp.zeros((1, 1, 1, 1, 1)))),
             ("given_frames.checked_frames", "[1, 4, 8, 8, 3]", "[1, 1, 1, 1, 1]", "'base'"))):
        with refused(*message):
            make()
