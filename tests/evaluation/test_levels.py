"""The search of the augmentation level: each level once, a record that survives, and nothing mixed up."""

from __future__ import annotations

import json

import jax.numpy as jnp
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.evaluation.levels import best_level, search_levels
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec


def stage(name, size, source=None):
    low = None if source is None else LowResolution(frames=1, height=source, width=source)
    return Stage(name=name, video=VideoSpec(frames=1, height=size, width=size), process=Process(), source=low,
                 network=UNet(levels=(Level(channels=4),), low_resolution=source is not None))


@pytest.fixture(scope="module")
def generator():
    """A cascade that is never sampled."""
    experiment = Experiment(name="tiny", stages=(stage("base", 4), stage("large", 8, 4)), data=CaptionedDigits())
    return Generator(experiment, {"base": {}, "large": {"kernel": jnp.full((), 2.0)}})


class Scorer:
    """Best at log-SNR 1; counts what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, generator):
        level = generator.experiment.stage("large").source.augmentation.sampling_logsnr
        self.asked.append(level)
        return {"whole": 1 - abs(level - 1) / 10, "colour": 0.5}


def test_levels_are_scored_once_and_the_best_is_found(generator, tmp_path):
    score, path = Scorer(), tmp_path / "levels.json"
    first = search_levels(generator, (4.0, -1.0), score, path, protocol={"count": 8})
    assert [row["logsnr"] for row in first["levels"]] == [-1.0, 4.0] and best_level(first, "whole") == -1.0
    lines = []
    record = search_levels(generator, (-1.0, 0.5, 4.0), score, path, protocol={"count": 8}, note=lines.append)
    assert score.asked == [4.0, -1.0, 0.5] and best_level(record, "whole") == 0.5
    assert json.loads(path.read_text()) == record and record["protocol"]["weights"]["large"] == "2"
    assert lines == ["log-SNR -1: already scored", "log-SNR 0.5: whole 0.950, colour 0.500",
                     "log-SNR 4: already scored"]


def test_what_is_scored_survives_a_crash(generator, tmp_path):
    path, score = tmp_path / "levels.json", Scorer()

    def fails(at_level):
        if len(score.asked) == 2:
            raise KeyboardInterrupt
        return score(at_level)

    with pytest.raises(KeyboardInterrupt):
        search_levels(generator, (0.0, 1.0, 2.0), fails, path, protocol={})
    search_levels(generator, (0.0, 1.0, 2.0), score, path, protocol={})
    assert score.asked == [0.0, 1.0, 2.0]


def test_bad_levels_and_other_records_are_refused(generator, tmp_path):
    path = tmp_path / "levels.json"
    with refused("levels.search_levels", "[]"):
        search_levels(generator, (), Scorer(), path, protocol={})
    with refused("levels.search_levels", "[nan]"):
        search_levels(generator, (float("nan"),), Scorer(), path, protocol={})
    search_levels(generator, (0.0,), Scorer(), path, protocol={"count": 8})
    with refused("levels.search_levels"):
        search_levels(generator, (0.0,), Scorer(), path, protocol={"count": 9})
