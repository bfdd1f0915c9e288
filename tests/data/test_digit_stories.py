"""Stories of digits: changes at known frames, the same handwriting, clips of frames far apart drawn alone."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import base_stage
from tests.refusals import refused
from vdm_jax.conditions.conditioning import Sizes, conditions_of
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.digit_stories import DigitStories
from vdm_jax.data.embeddings import Clips
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.digits.clips import HELD_OUT_PAIRS, caption_words, parse_caption
from vdm_jax.digits.drawing import COLOURS, DIRECTION, digit_stamps
from vdm_jax.digits.stories import make_story
from vdm_jax.generation.long_video.script import Script
from vdm_jax.stages.inputs import device_fields, training_inputs
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import VideoSpec

pytest.importorskip("sklearn")
SPEC = DigitStories(length=226, act=32, size=16, frames=4, strides=(1, 15))


def test_a_story_changes_at_known_frames_and_keeps_its_handwriting():
    for index in range(20):
        story = make_story(SPEC, "train", index)
        assert [act.start for act in story.acts] == list(range(0, 226, 32)) and story.track.shape == (226, 2)
        digits = {act.shown.digit for act in story.acts}
        colours = [act.shown.colour for act in story.acts]
        assert len(digits) == 1 and all(a != b for a, b in zip(colours, colours[1:], strict=False))
        assert any(story.stamp is stamp or (story.stamp == stamp).all() for stamp in digit_stamps("train", 8)[
            digits.pop()])
        for act in story.acts:
            assert (act.shown.digit, act.shown.motion) not in HELD_OUT_PAIRS
            assert parse_caption(act.caption) == (act.shown,)
            step = np.diff(story.track[act.start : act.start + 32], axis=0).sum(0)  # y, x
            if act.shown.motion in DIRECTION:
                assert np.sign(step).tolist() == list(DIRECTION[act.shown.motion])
                assert np.abs(step).sum() > 3 * 31 / 32 or act.start == 224  # the last act is cut after two frames
            elif act.shown.motion == "still":
                assert not step.any()
        assert story.track.min() >= 0 and story.track.max() <= 8
        assert np.abs(np.diff(story.track, axis=0)).max() < 1  # no jump where acts meet
        assert Script(story.script()).places(range(226))[0].tolist() == [t // 32 for t in range(226)]


def test_frames_are_drawn_as_they_are_asked_for():
    story = make_story(SPEC, "test", 3)
    whole, some = story.draw(range(226)), [200, 31, 32, 5]
    np.testing.assert_array_equal(story.draw(some), whole[some])
    for frame in (0, 31, 32, 225):
        colour = np.array(COLOURS[story.act(frame).shown.colour])
        pixel = whole[frame].reshape(-1, 3)[whole[frame].sum(-1).argmax()]
        np.testing.assert_allclose(pixel / pixel.max(), colour / colour.max(), atol=0.08)
    start, long = time.perf_counter(), dataclasses.replace(SPEC, length=3376, strides=(225,), frames=16)
    clip = long.open("train", None)[0]  # of 3,376 frames, sixteen are drawn
    assert clip["video"].shape == (16, 16, 16, 3) and time.perf_counter() - start < 2
    assert len(set(clip["frame_captions"])) > 10


def test_clips_are_of_several_time_scales():
    source = SPEC.open("train", None)
    drawn = [source.clip(0, np.random.default_rng(i)) for i in range(40)]
    assert {clip["fps"] for clip in drawn} == {8.0, 8 / 15}
    again = source.clip(0, np.random.default_rng(7))
    np.testing.assert_array_equal(again["video"], drawn[7]["video"])
    np.testing.assert_array_equal(source[5]["video"], source[5]["video"])
    assert source.frame(0, np.random.default_rng(0))["video"].shape == (1, 16, 16, 3)
    with pytest.raises(IndexError):
        source[len(source)]
    assert from_json(Clips, to_json(SPEC)) == SPEC and set(" ".join(drawn[0]["frame_captions"]).split()) <= set(
        SPEC.vocabulary())
    with refused("DigitStories.strides", "(1, 80)", "length=226", "up to 75"):
        dataclasses.replace(SPEC, strides=(1, 80))


def test_every_frame_of_a_training_clip_has_its_prompt():
    base = base_stage()
    text = dataclasses.replace(base.network.text, words=caption_words(), length=6)
    stage = dataclasses.replace(base, video=VideoSpec(frames=4, height=16, width=16), network=dataclasses.replace(
        base.network, text=text))
    spec = dataclasses.replace(SPEC, strides=(20,))
    pipeline = Pipeline(spec.open("train", None), batch_size=3, seed=0, tokenize=text.tokenize, random_starts=True)
    batch = pipeline.batch(0)
    assert batch["frame_tokens"].shape == (3, 4, 6) and batch["frame_captions"].shape == (3, 4)
    fields = device_fields(batch)
    x, conditioning, _ = training_inputs(stage, {name: jnp.asarray(a) for name, a in fields.items()}, jax.random.key(0))
    np.testing.assert_array_equal(conditioning.tokens, batch["frame_tokens"])
    assert x.shape == (3, 4, 16, 16, 3) and conditioning.text_mask.shape == (3, 4, 6)
    part = dataclasses.replace(stage, training=Training(frames=2))
    _, cut, _ = training_inputs(part, {name: jnp.asarray(a) for name, a in fields.items()}, jax.random.key(0))
    assert cut.tokens.shape == (3, 2, 6)
    shapes = next(c for c in conditions_of(stage.network) if c.name == "text").batch_shapes(
        stage, Sizes(clip=(4, 16, 16), frame_prompts=True))
    assert shapes["frame_tokens"][0] == (4, 6)
    with refused("text.Text.of_batch", "images_per_clip=0"):
        training_inputs(stage, {**fields, "images": batch["video"][:, :1]}, jax.random.key(0))
