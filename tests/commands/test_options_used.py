"""Options that a command would ignore are refused, and runs are called by their config's file."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.commands.conftest import TINY
from vdm_jax.commands.configs import config_folder, load_config
from vdm_jax.commands.train_command import default_run
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.training.runs import open_run


def test_a_run_is_called_by_the_file_of_its_config():
    shutil.copy(config_folder() / "captioned_digits.py", "mine.py")
    assert default_run("mine.py", load_config("mine.py")) == Path("runs/mine")  # though its name is captioned_digits
    for config in ("captioned_digits", str(config_folder() / "captioned_digits.py")):
        assert default_run(config, load_config(config)) == Path("runs/captioned_digits")
    assert default_run("vdm/ucf101", load_config("vdm/ucf101")) == Path("runs/vdm_ucf101")


@pytest.mark.parametrize("option", [("--given-frames", "1"), ("--split", "train"), ("--protocol", "vdm_bair"),
                                    ("--resamples", "7"), ("--samples-per-clip", "2")])
def test_evaluate_refuses_options_of_metrics_without_them(fails, option):
    open_run(Path("run"), load_config(TINY))
    assert f"{option[0]}={option[1]} without --metrics" in fails("evaluate", "run", *option)


def test_evaluate_of_autoencoders_refuses_options_of_videos(fails):
    open_run(Path("run"), load_config("autoencoder/digits"))
    for option in (("--steps", "3"), ("--seed", "1"), ("--count", "8"), ("--guidance", "2.0")):
        assert f"{option[0]}={option[1]} with run run of autoencoders" in fails("evaluate", "run", *option)


def test_evaluate_without_digits_names_metrics(fails):
    """Before any weights are read: the run has none."""
    experiment = load_config("my_videos")
    assert isinstance(experiment.data, PreparedClips)
    open_run(Path("run"), dataclasses.replace(experiment, name="any"))
    message = fails("evaluate", "run")
    assert "no captions of digits" in message and "permitted: --metrics with any of fvd, kvd, motion" in message


def test_sample_refuses_labels_where_no_stage_takes_a_class(trained, fails):
    arguments = ("sample", trained, "a red 3 moving left", "--last", "base", "--out", "x.png")
    assert "no stage takes a class" in fails(*arguments, "--labels", "1", "2", "7")
    assert "no stage takes a class" in fails(*arguments, "--frames", "6", "--labels", "1")
    assert not Path("x.png").exists()
