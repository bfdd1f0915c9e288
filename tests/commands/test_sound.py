"""`vdm-jax sample --sound`: what a run that hears is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_sound import tone, write_wav
from tests.generation.conftest import base_stage
from tests.refusals import refused
from vdm_jax.commands.sample_command import Sample, heard
from vdm_jax.conditions.inputs import Input
from vdm_jax.data.sound import LogMel
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.stages.stage import Experiment


@pytest.fixture
def experiment():
    stage = base_stage()  # 2 frames at 4 a second
    network = dataclasses.replace(stage.network, conditions=(Input(name="sound", width=LogMel().width),))
    return Experiment(name="hears", stages=(dataclasses.replace(stage, network=network),),
                      data=VideoFolder(path="videos", sound=LogMel()))


def test_the_sound_of_a_file_is_heard_in_the_frames_of_the_video(experiment, tmp_path):
    write_wav(tmp_path / "a.wav", np.concatenate([tone(0.25), np.zeros(4000)]))
    options = Sample(run="hears", captions=("a", "b"), count=2, sound=(tmp_path / "a.wav",))
    found = heard(options, experiment)["sound"]
    assert found.shape == (4, 2, 512) and (found[0] == found[3]).all()
    assert found[0, 0].mean() > found[0, 1].mean() + 0.2  # the first of two frames at 4 a second
    with refused("sound.shorter", "a.wav", "0.48 s", "2 s"):
        heard(dataclasses.replace(options, frames=8), experiment)
    with refused("--sound", "is missing"):
        heard(dataclasses.replace(options, sound=()), experiment)


def test_runs_that_hear_nothing_refuse_it(experiment):
    deaf = Experiment(name="deaf", stages=(base_stage(),), data=experiment.data)
    assert heard(Sample(run="deaf"), deaf) == {}
    with refused("--sound", "hears no sound", "a.wav"):
        heard(Sample(run="deaf", sound=(Path("a.wav"),)), deaf)
    with refused("--sound", "does not say what it hears"):
        heard(Sample(run="x", sound=(Path("a.wav"),)), dataclasses.replace(experiment, data=VideoFolder(path="videos")))
