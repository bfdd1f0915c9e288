"""Weights that ship: which steps their manifest tells, and as what their stages begin."""

import dataclasses

from experiments.demo import continued, ship
from vdm_jax.runs.directory import open_run
from vdm_jax.runs.shipped import SHIPPED, read_manifest
from vdm_jax_configs import captioned_digits_full

NAME = "captioned_digits_full"


def test_steps_of_a_training_that_goes_on_from_the_package_count_both(monkeypatch, tmp_path):
    before = read_manifest(SHIPPED / NAME)["steps"]
    monkeypatch.setattr(ship, "exported_steps", lambda run, experiment: {"base": 1000, "spatial_1": 10})
    experiment = continued.get_config()
    open_run(tmp_path / "on", experiment)
    assert ship.all_steps(tmp_path / "on", NAME) == {
        "base": before["base"] + 1000, "spatial_1": before["spatial_1"] + 10, "spatial_2": before["spatial_2"]}
    anew = tuple(dataclasses.replace(stage, training=dataclasses.replace(stage.training, init_from=None))
                 for stage in experiment.stages)
    open_run(tmp_path / "anew", dataclasses.replace(experiment, stages=anew))
    found = ship.all_steps(tmp_path / "anew", NAME)
    assert (found["base"], found["spatial_1"]) == (1000, 10)


def test_what_goes_on_from_the_package_ships_as_the_config_of_its_name():
    assert ship.as_shipped(continued.get_config(), NAME) == captioned_digits_full.get_config()
