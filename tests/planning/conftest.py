"""Small stages that are compiled for virtual CPU devices."""

import dataclasses

import pytest

from tests.experiments.tiny_base import get_config


@pytest.fixture(scope="session")
def tiny():
    """An experiment of one level with full attention and words, 4 frames of 16 x 16 pixels."""
    experiment = get_config()
    stage = experiment.stages[0]
    words = dataclasses.replace(stage.network.text, words=("a", "red", "digit"))
    stage = dataclasses.replace(stage, network=dataclasses.replace(stage.network, text=words))
    return dataclasses.replace(experiment, stages=(stage,))
