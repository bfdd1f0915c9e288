"""Options that a command would ignore are refused, and runs are called by their config's file."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.commands.conftest import TINY
from vdm_jax.commands.arguments import given
from vdm_jax.commands.configs import config_folder, load_config
from vdm_jax.commands.evaluate_command import Evaluate, check_used
from vdm_jax.commands.train_command import default_run
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.runs.directory import open_run


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
    assert "is given and no stage takes it" in fails(*arguments, "--labels", "1", "2", "7")
    assert "is given and no stage takes it" in fails(*arguments, "--frames", "6", "--labels", "1")
    assert not Path("x.png").exists()


@pytest.mark.parametrize(("command", "options", "message"), [
    ("benchmark attention --topology v5p-64", "--seconds 2", "--seconds=2.0 with --topology"),
    ("benchmark attention --topology v5p-64", "--memory-gib 8", "--memory-gib=8.0 with --topology"),
    ("benchmark attention --topology v5p-64", "--matmul-size 64", "--matmul-size=64 with --topology"),
    ("benchmark attention --report", "--frames 2 3", "--frames=2 3 with --report"),
    ("benchmark attention --report", "--patterns full", "--patterns=full with --report"),
    ("benchmark attention --report", "--batch 2", "--batch=2 with --report"),
    ("benchmark attention --report", "--mesh.fsdp 2", "--mesh with --report"),
    ("benchmark attention --report", "--topology v5p-64", "--topology=v5p-64 with --report"),
    ("benchmark attention --report", "--fresh", "--fresh with --report"),
    ("compile none", "--meshes data=8 data=4", "--meshes=data=8 data=4 without --search"),
    ("compile none", "--most 8", "--most=8 without --search"),
    ("compile none --search --batch 8", "--most 16", "--most=16 with --batch=8"),
    ("embed texts.txt --encoder none --out out", "--data-dir data", "--data-dir=data with a text file (texts.txt)"),
    ("prepare captioned_digits", "--out clips", "--out=clips with config captioned_digits"),
    ("prepare captioned_digits", "--size 8 8", "--size=8 8 with config captioned_digits"),
    ("prepare captioned_digits", "--fps 8", "--fps=8.0 with config captioned_digits"),
    ("prepare captioned_digits", "--workers 2", "--workers=2 with config captioned_digits"),
    ("prepare videos --out clips", "--data-dir data", "--data-dir=data with a folder of videos (videos)"),
    ("evaluate run", "--data-dir data", "--data-dir=data without --metrics"),
    ("evaluate run --augmentation-levels 1", "--data-dir data", "--data-dir=data without --metrics"),
    ("evaluate run --checkpoints all", "--resamples 7", "--resamples=7 without --metrics"),
    ("evaluate run --metrics motion", "--resamples 7", "--resamples=7 with --metrics motion"),
    ("evaluate run --metrics fvd", "--fid-protocol fid_pytorch", "--fid-protocol=fid_pytorch with --metrics fvd"),
    ("evaluate run --metrics fvd", "--block-frames 8", "--block-frames=8 with --metrics fvd"),
    ("measure videos --metrics motion", "--resamples 7", "--resamples=7 with --metrics motion"),
    ("measure videos --metrics motion", "--least-motion 0.2", "--least-motion=0.2 with --metrics motion"),
])
def test_options_that_nothing_would_read_are_refused(fails, tmp_path, command, options, message):
    Path("texts.txt").write_text("a caption\n")
    Path("videos").mkdir()
    open_run(Path("run"), load_config(TINY))
    before = sorted(tmp_path.rglob("*"))
    found = fails(*command.split(), *options.split())
    assert message in found and " is not used; permitted: " in found
    assert sorted(tmp_path.rglob("*")) == before


def test_options_that_are_read_pass():
    """At their defaults, or where a metric reads them."""
    options = Evaluate(run="run", metrics=("motion", "is"), resamples=7, fid_protocol="fid_pytorch", data_dir=Path("x"))
    check_used(options)
    check_used(Evaluate(run="run"))
    assert given(options).keys() == {"run", "metrics", "resamples", "fid_protocol", "data_dir"}
