"""`vdm-jax sample --sound`: what a run that hears is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tests.data.test_sound import tone, write_wav
from tests.generation.conftest import base_stage
from tests.generation.test_key_frames import between
from tests.refusals import refused
from vdm_jax.commands.sample_command import Sample, heard
from vdm_jax.conditions.inputs import Input
from vdm_jax.data.sound import LogMel
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import CrossAttention
from vdm_jax.stages.stage import Experiment

DATA = VideoFolder(path="videos", sound=LogMel())


def generator_of(*stages, data=DATA):
    """Of stages without weights."""
    return Generator(Experiment(name="hears", stages=stages, data=data), {})


def hearing(stage):
    level, conditions = stage.network.levels[0], (Input(name="sound", width=LogMel().width),)
    level = dataclasses.replace(level, mixers=(*level.mixers, CrossAttention(head_dim=8)))
    network = dataclasses.replace(stage.network, levels=(level,), conditions=conditions)
    return dataclasses.replace(stage, network=network)


def sound_of(options, generator):
    return heard(options, generator, generator.makes(options.first, options.last, options.fps))


def test_the_sound_of_a_file_is_heard_in_the_frames_of_the_video(tmp_path):
    generator = generator_of(hearing(base_stage()))  # 2 frames at 4 a second
    write_wav(tmp_path / "a.wav", np.concatenate([tone(0.25), np.zeros(4000)]))
    options = Sample(run="hears", captions=("a", "b"), count=2, sound=(tmp_path / "a.wav",))
    found = sound_of(options, generator)["sound"]
    assert found.shape == (4, 2, 512) and (found[0] == found[3]).all()
    assert found[0, 0].mean() > found[0, 1].mean() + 0.2  # the first of two frames at 4 a second
    with refused("sound.shorter", "a.wav", "0.48 s", "2 s"):
        sound_of(dataclasses.replace(options, frames=8), generator)
    with refused("--sound", "is missing"):
        sound_of(dataclasses.replace(options, sound=()), generator)


def test_sound_is_cut_at_the_rate_of_the_stage_that_hears_it(tmp_path):
    """Half a second of a tone, then silence; a stage of 2 frames at 4 a second, then one of 4 at 12."""
    write_wav(tmp_path / "a.wav", np.concatenate([tone(0.5), np.zeros(5600)]))
    options = Sample(run="hears", sound=(tmp_path / "a.wav",), captions=("a",), fps=2.0)  # the second stage at 6
    later = generator_of(base_stage(), hearing(between()))
    loud = sound_of(options, later)["sound"].mean((0, 2))  # from 0, 1/6, 1/3 and 1/2 s on
    assert loud.shape == (4,) and loud[:3].min() > loud[3] + 0.2
    long = dataclasses.replace(options, fps=None, frames=10, extend="key_frames")
    both = generator_of(hearing(base_stage()), hearing(between()))
    loud = sound_of(long, both)["sound"].mean((0, 2))  # every twelfth of a second
    assert loud.shape == (10,) and loud[:6].min() > loud[6:].max() + 0.2


def test_runs_that_hear_nothing_refuse_it():
    deaf = generator_of(base_stage())
    assert sound_of(Sample(run="deaf"), deaf) == {}
    with refused("--sound", "hears no sound", "a.wav"):
        sound_of(Sample(run="deaf", sound=(Path("a.wav"),)), deaf)
    with refused("--sound", "does not say what it hears", "DigitBeats"):
        sound_of(Sample(run="x", sound=(Path("a.wav"),)),
                 generator_of(hearing(base_stage()), data=VideoFolder(path="videos")))
