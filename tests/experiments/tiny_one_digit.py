"""The tiny base on clips of one digit; a config like any other."""

import dataclasses

from tests.experiments import tiny_base
from vdm_jax.digits.captioned_digits import CaptionedDigits


def get_config():
    experiment = tiny_base.get_config()
    stage = experiment.stages[0]
    training = dataclasses.replace(stage.training, steps=2, sample_every=0, validate_every=0, log_every=1)
    data = CaptionedDigits(size=32, frames=4, objects=(1, 1), train_clips=16, validation_clips=8, test_clips=8)
    return dataclasses.replace(experiment, stages=(dataclasses.replace(stage, training=training),), data=data)
