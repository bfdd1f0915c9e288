"""Small stages that are compiled for virtual CPU devices."""

import dataclasses

import pytest

from tests.experiments.tiny_base import get_config
from vdm_jax.diffusion.consistency import Boundary
from vdm_jax.diffusion.samplers import Consistency
from vdm_jax.stages.distillation import ConsistencyDistillation, Teacher
from vdm_jax.stages.options import Sampling


@pytest.fixture(scope="session")
def tiny():
    """An experiment of one level with full attention and words, 4 frames of 16 x 16 pixels."""
    experiment = get_config()
    stage = experiment.stages[0]
    words = dataclasses.replace(stage.network.text, words=("a", "red", "digit"))
    stage = dataclasses.replace(stage, network=dataclasses.replace(stage.network, text=words))
    return dataclasses.replace(experiment, stages=(stage,))


@pytest.fixture(scope="session")
def distilled(tiny):
    """Its stage as a consistency model that learns from a teacher, with a target."""
    stage = tiny.stages[0]
    training = dataclasses.replace(stage.training, validate_every=0, distillation=ConsistencyDistillation(
        teacher=Teacher(run="teacher", stage="base"), intervals=4))
    return dataclasses.replace(stage, training=training,
                               sampling=Sampling(sampler=Consistency(), consistency=Boundary(), steps=2))
