"""Bits per dimension of stages: of which clips, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import CaptionedDigitsSource
from vdm_jax.evaluation.likelihood import measure_bits
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

DATA = CaptionedDigits(size=16, frames=2, test_clips=5)
STAGE = Stage(name="large", video=VideoSpec(frames=2, height=16, width=16), process=Process(),
              network=UNet(levels=(Level(channels=4, blocks=1),), groups=2, patch=2, low_resolution=True),
              source=LowResolution(frames=2, height=8, width=8), training=Training(text_dropout=0.0),
              sampling=Sampling(guidance=0.0, batch_size=2))


def generator(stage, params):
    return Generator(Experiment(name="tiny", stages=(stage,), data=DATA), params, jax.devices()[:1])


@pytest.fixture(scope="module")
def params():
    return {"large": initial_params(STAGE, jax.random.key(0))}


def test_a_stage_that_learns_from_windows_is_measured_on_whole_frames(params):
    source = CaptionedDigitsSource(DATA, "test")
    whole, = measure_bits(generator(STAGE, params), source, count=3, steps=2)
    windows = dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, crop=(8, 8)))
    found, = measure_bits(generator(windows, params), source, count=3, steps=2)
    assert found == whole and np.isfinite(whole.value)


def test_what_is_not_there_is_refused(params):
    source = CaptionedDigitsSource(DATA, "test")
    with refused("count", "count=6", "up to 5"):
        measure_bits(generator(STAGE, params), source, count=6)
    with refused("bits_per_dim", "'large'", "no trained weights"):
        measure_bits(generator(STAGE, {}), source, count=2)
