"""The comparison of cascades: equal budgets, what begins as what, and its tables."""

import math

import pytest

from experiments.cascade_baseline import systems
from experiments.cascade_baseline.report import body, table
from experiments.cascade_baseline.run import HERE
from experiments.cascade_baseline.systems import DATA, SYSTEMS, within_budget
from experiments.readme_tables import insert
from vdm_jax.benchmark.record import load
from vdm_jax.stages.options import InitFrom

BUDGET = 2e13


def pixels_flops(stage, data):
    """In place of the network's, which takes seconds to trace."""
    return 1e6 * stage.training.batch_size * math.prod(stage.video.shape)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_spends_its_budget_and_makes_whole_videos(name, tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "step_flops", pixels_flops)
    parts = SYSTEMS[name](tmp_path)
    shares = [share for part in parts for share in part.shares.values()]
    assert math.isclose(sum(shares), 1)
    for part in parts:
        for stage in within_budget(part, BUDGET).stages:
            paid, step = part.shares[stage.name] * BUDGET, pixels_flops(stage, DATA)
            assert stage.training.steps == 1 or paid - step < stage.training.steps * step <= paid
    assert str(parts[-1].experiment.stages[-1].video) == "16x64x64"


@pytest.mark.parametrize("name", ["Make-A-Video", "Lumiere"])
def test_video_networks_begin_as_the_image_networks(name, tmp_path):
    images, videos = SYSTEMS[name](tmp_path)
    begun = [stage.training.init_from for stage in videos.experiment.stages]
    known = {stage.name for stage in images.experiment.stages}
    assert all(isinstance(one, InitFrom) for one in begun)
    assert {one.stage for one in begun if one.run == str(tmp_path / images.name)} == known
    frozen = [bool(stage.training.trainable) for stage in videos.experiment.stages]
    assert all(frozen) if name == "Lumiere" else not any(frozen)


def test_the_table_says_the_mean_of_seeds_and_their_range():
    def row(seed, whole):
        scores = {"count": 1.0, "colour": 1.0, "digit": 0.5, "motion": 0.5, "whole": whole}
        return {"system": "VDM", "seed": seed, "stages": [{"flops": 3e12}, {"flops": 1e12}],
                "scores": {"generated": scores, "real clips (ceiling)": dict.fromkeys(scores, 0.98)}}

    lines = table([row(0, 0.2), row(1, 0.4)]).splitlines()
    assert lines[2].startswith("| VDM | 2 | 2 | 4.0 |") and lines[2].endswith("| 0.30 (0.20 to 0.40) |")
    assert lines[3] == "| real clips (ceiling) | | | | 0.98 | 0.98 | 0.98 | 0.98 | 0.98 |"


def test_the_page_has_the_record():
    path = HERE / "results" / "cpu.json"
    text = (HERE / "README.md").read_text()
    assert insert(text, "cpu", body(load(path), path)) == text
