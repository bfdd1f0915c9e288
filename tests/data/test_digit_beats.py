"""Digits with a beat: jumps and clicks at the same times, what a stage hears of them, what cannot be."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.inputs import Input
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.digit_beats import DigitBeats
from vdm_jax.data.embeddings import Clips
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.data.sound import LogMel
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.beats import FIRST, JUMP, TURN, clicks, make_beat_clip
from vdm_jax.digits.clips import parse_caption
from vdm_jax.digits.drawing import digit_stamps
from vdm_jax.metrics.av_align import matched, motion_peaks
from vdm_jax.metrics.onsets import RATE, onsets
from vdm_jax.networks.config import CrossAttention, Level, UNet
from vdm_jax.stages.inputs import device_fields, training_inputs
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.video.sound import read_sound

pytest.importorskip("sklearn")
SPEC = DigitBeats(train_clips=40, test_clips=12)


@pytest.fixture(scope="module")
def clips():
    return [make_beat_clip(SPEC, "test", i) for i in range(12)]


def test_a_digit_jumps_at_its_beats_and_at_no_other_time(clips):
    counts, room = set(), 32
    for clip in clips + [make_beat_clip(SPEC, "train", i) for i in range(40)]:
        counts.add(len(clip.beats))
        assert FIRST <= clip.beats[0] and clip.beats[-1] <= 14 and (np.diff(clip.beats) >= 3).all()
        steps = np.diff(clip.track, axis=0)
        np.testing.assert_array_equal(np.flatnonzero(steps.any(1)) + 1, clip.beats)
        changed = (np.diff(clip.video.astype(int), axis=0) != 0).any((1, 2, 3))
        np.testing.assert_array_equal(np.flatnonzero(changed) + 1, clip.beats)
        jumps = steps[clip.beats - 1]
        lengths = np.linalg.norm(jumps, axis=1)
        assert JUMP[0] * room - 1e-9 <= lengths.min() and lengths.max() <= JUMP[1] * room + 1e-9
        for one, other in itertools.pairwise(jumps / lengths[:, None]):
            assert np.degrees(np.arccos(np.clip(one @ other, -1, 1))) >= TURN - 1e-6
        assert clip.track.min() >= 0 and clip.track.max() <= room
        assert parse_caption(clip.caption) == (clip.shown,) and clip.shown.motion == "bounce"
    assert counts == {1, 2, 3}


def test_beats_are_as_likely_everywhere():
    drawn = [tuple(dataclasses.replace(SPEC, frames=9, beats=(2, 2)).draw_beats(rng)) for rng in map(
        np.random.default_rng, range(1000))]
    permitted = {pair for pair in itertools.combinations(range(FIRST, 8), 2) if pair[1] - pair[0] >= 3}
    shares = np.array([drawn.count(pair) for pair in permitted]) / 1000
    assert set(drawn) == permitted and np.abs(shares - 1 / len(permitted)).max() < 0.05


def test_real_clips_score_one_and_with_another_sound_little(clips):
    pytest.importorskip("librosa"), pytest.importorskip("cv2")
    sounds, motions = [onsets(clip.sound(RATE)) for clip in clips], [motion_peaks(clip.video, 8) for clip in clips]
    for clip, found, peaks in zip(clips, sounds, motions, strict=True):
        np.testing.assert_allclose(found, clip.seconds, atol=0.04)
        np.testing.assert_allclose(peaks, clip.seconds)
    own = [matched(*pair, 8) for pair in zip(sounds, motions, strict=True)]
    other = [matched(*pair, 8) for pair in zip(sounds[1:], motions, strict=False)]
    assert min(own) == 1 and np.mean(other) < 0.4


def test_clicks_begin_at_their_times_and_end():
    sound = clicks(np.array([0.1, 0.5]), 1.0, 1000.0, 8000)
    assert sound.shape == (8000,) and sound.dtype == np.float32 and 0.3 < np.abs(sound).max() <= 0.5
    heard = np.flatnonzero(sound) / 8000
    assert ((0.1 <= heard) & (heard < 0.18) | (0.5 <= heard) & (heard < 0.58)).all()
    np.testing.assert_array_equal(clicks(np.array([0.1, 0.5]), 1.0, 1000.0, 16_000)[::2], sound)


@pytest.mark.parametrize("sound", [LogMel(), LogMel(encoder="clap", rows=2)])
def test_what_is_heard_is_that_of_a_file_of_the_sound(tmp_path, clips, sound):
    from tests.data.test_sound import write_wav

    clip, spec = clips[0], dataclasses.replace(SPEC, sound=sound)
    found = open_source(spec, "test")[0]["sound"]
    assert found.shape == (16, sound.width) and found.dtype == np.float32
    write_wav(tmp_path / "a.wav", clip.sound(sound.sample_rate), sound.sample_rate)
    assert len(read_sound(tmp_path / "a.wav", sound.sample_rate)) == 2 * sound.sample_rate
    of_file = sound.of_frames(tmp_path, "a.wav", np.arange(16) / 8, 8.0)
    loud = found > found.max() - (60 if sound.encoder == "clap" else 0.5)  # 16 bits of a file round what is quiet
    np.testing.assert_allclose(found[loud], of_file[loud], atol=0.05 * np.abs(found).max())
    volume = found.mean(1)  # the frame of a beat is louder than both of its neighbours
    inner = np.flatnonzero((volume[1:-1] > volume[:-2]) & (volume[1:-1] > volume[2:])) + 1
    np.testing.assert_array_equal(inner, clip.beats)


def test_clips_by_number(clips):
    source = open_source(SPEC, "test")
    assert len(source) == 12 and set(source[0]) == {"video", "caption", "fps", "sound"}
    np.testing.assert_array_equal(source[3]["video"], clips[3].video)
    np.testing.assert_array_equal(source[3]["sound"], SPEC.heard(clips[3]))
    assert source[3]["caption"] == clips[3].caption and source.clip_of(3).pitch == clips[3].pitch
    assert any((stamp > 0).sum() and stamp.shape == (32, 32) for stamp in digit_stamps("test", 32)[0])
    assert not (make_beat_clip(SPEC, "train", 3).video == clips[3].video).all()
    assert not (make_beat_clip(dataclasses.replace(SPEC, seed=1), "test", 3).video == clips[3].video).all()
    assert set(" ".join(clip.caption for clip in clips).split()) <= set(SPEC.vocabulary())
    assert from_json(Clips, to_json(SPEC)) == SPEC
    with pytest.raises(IndexError):
        source[12]


def test_a_stage_hears_the_clips():
    level = Level(channels=8, blocks=1, mixers=(CrossAttention(head_dim=4),))
    network = UNet(levels=(level,), conditions=(Input(name="sound", width=SPEC.sound.width),))
    stage = Stage(name="base", video=VideoSpec(frames=16, height=16, width=16), network=network, process=Process())
    batch = Pipeline(open_source(SPEC, "train"), batch_size=2, seed=0).batch(0)
    fields = device_fields({name: x for name, x in batch.items() if name not in ("caption", "fps")})
    _, conditioning, _ = training_inputs(stage, fields, jax.random.key(0))
    np.testing.assert_array_equal(conditioning.inputs["sound"], batch["sound"])


def test_what_cannot_be():
    for fields in ({"frames": 8}, {"beats": (2, 1)}, {"beats": (1, 6)}, {"gap": 7}):
        with refused("DigitBeats.beats", "fewest to most"):
            DigitBeats(**fields)
    with refused("DigitBeats.beats", "up to 5"):
        DigitBeats(beats=(1, 6))
    assert DigitBeats(beats=(5, 5)).draw_beats(np.random.default_rng(0)).tolist()[-1] <= 14
    with refused("split", "'tests'", "'train'"):
        DigitBeats().open("tests", None)
    with refused("split", "'tests'"):
        make_beat_clip(SPEC, "tests", 0)
