"""Captioned digits with control maps: the clips of the data set without, and what a stage sees of the maps."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.inputs import Input
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.controlled_digits import ControlledDigits, without_digits
from vdm_jax.data.embeddings import Clips
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.clips import DigitClips, caption_words, generate_clip
from vdm_jax.digits.controls import draw_control
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.inputs import device_fields, training_inputs
from vdm_jax.stages.stage import Stage, VideoSpec

pytest.importorskip("sklearn")
SPEC = ControlledDigits(objects=(1, 1), frames=4, train_clips=8, test_clips=4, controls=("track", "height"))


def test_clips_are_those_of_captioned_digits():
    shared = {field.name: getattr(SPEC, field.name) for field in dataclasses.fields(DigitClips)}
    for split, count in (("train", 8), ("test", 4)):
        source = open_source(SPEC, split)
        assert len(source) == count
        for i in (0, count - 1):
            clip, found = generate_clip(DigitClips(**shared), split, i), source[i]
            np.testing.assert_array_equal(found["video"], clip.video)
            assert found["caption"] == clip.caption
            assert set(found) == {"video", "caption", "fps", "control", "control_1"}
            for name, kind in (("control", "track"), ("control_1", "height")):
                np.testing.assert_array_equal(found[name], draw_control(clip, kind))
        with pytest.raises(IndexError):
            source[count]
    assert from_json(Clips, to_json(SPEC)) == SPEC


def test_captions_may_leave_the_digit_out():
    silent = open_source(dataclasses.replace(SPEC, says_digit=False), "test")
    for i in range(4):
        caption, whole = silent[i]["caption"], open_source(SPEC, "test")[i]["caption"]
        assert caption == without_digits(whole) and len(caption.split()) == len(whole.split()) - 1
        assert set(caption.split()) <= set(caption_words())
    assert without_digits("a red one moving left") == without_digits("a red 1 moving left") == "a red moving left"
    assert silent.spec.scorer() is None and SPEC.scorer() is not None


def test_a_stage_sees_maps_in_its_own_frames_and_size():
    network = UNet(levels=(Level(channels=8, blocks=1),), conditions=tuple(
        Input(name=name, width=3) for name in ("control", "control_1")))
    stage = Stage(name="base", video=VideoSpec(frames=2, height=16, width=16), network=network, process=Process())
    batch = Pipeline(open_source(SPEC, "train"), batch_size=4, seed=0).batch(0)
    fields = device_fields({name: x for name, x in batch.items() if name not in ("caption", "fps")})
    _, conditioning, _ = training_inputs(stage, fields, jax.random.key(0))
    for name in ("control", "control_1"):
        expected = batch[name][:, ::2].reshape(4, 2, 16, 4, 16, 4, 3).mean((3, 5)) / 255
        np.testing.assert_allclose(conditioning.inputs[name], expected, atol=1e-6)


def test_what_cannot_be():
    with refused("ControlledDigits.controls", "('track', 'track')", "each once"):
        ControlledDigits(controls=("track", "track"))
    with refused("ControlledDigits.controls", "up to 4 kinds"):
        ControlledDigits(controls=("edges", "track", "strokes", "height", "reference"))
    with refused("ControlledDigits.controls", "'pose'", "'edges'"):
        ControlledDigits(controls=("pose",))
    with refused("ControlledDigits.controls"):
        ControlledDigits(controls=())
