"""Weights that ship: which steps their manifest tells, and as what their stages begin."""

import dataclasses
import json

import pytest

from experiments.demo import continued, ship
from vdm_jax.runs.directory import open_run
from vdm_jax.runs.shipped import SHIPPED, read_manifest
from vdm_jax_configs import captioned_digits_full

NAME = "captioned_digits_full"
TRAINED = {"base": 1000, "spatial_1": 10}


@pytest.fixture
def before(monkeypatch):
    """Steps of what ships now; runs have those of `TRAINED`."""
    monkeypatch.setattr(ship, "exported_steps", lambda run, experiment: dict(TRAINED))
    return read_manifest(SHIPPED / NAME)["steps"]


def test_steps_of_a_training_that_goes_on_from_the_package_count_both_once(before, monkeypatch, tmp_path):
    open_run(tmp_path, continued.get_config())
    wanted = {"base": before["base"] + 1000, "spatial_1": before["spatial_1"] + 10}
    assert ship.all_steps(tmp_path, NAME) == wanted  # nothing is known of a stage that is not there
    (tmp_path / "spatial_2").mkdir()
    (tmp_path / "spatial_2" / "params.safetensors").touch()
    wanted["spatial_2"] = before["spatial_2"]
    assert ship.all_steps(tmp_path, NAME) == wanted
    shipped = tmp_path / "shipped" / NAME  # the run has been shipped, and is trained on
    shipped.mkdir(parents=True)
    (shipped / "manifest.json").write_text(json.dumps({"steps": wanted, "files": {}}))
    monkeypatch.setattr(ship, "SHIPPED", tmp_path / "shipped")
    assert ship.all_steps(tmp_path, NAME) == wanted


def test_steps_of_a_training_from_nothing_count_alone(before, tmp_path):
    experiment = continued.get_config()
    anew = tuple(dataclasses.replace(stage, training=dataclasses.replace(stage.training, init_from=None))
                 for stage in experiment.stages)
    open_run(tmp_path, dataclasses.replace(experiment, stages=anew))
    assert ship.all_steps(tmp_path, NAME) == TRAINED


def test_what_goes_on_from_the_package_ships_as_the_config_of_its_name():
    assert ship.as_shipped(continued.get_config(), NAME) == captioned_digits_full.get_config()
    alone = captioned_digits_full.get_config()
    assert ship.as_shipped(alone, "a name without a config") is alone
