"""Training on a folder that is too small to hold clips back for validation."""

import json

import numpy as np
import pytest

from vdm_jax.commands.main import main
from vdm_jax.runs.records import read_records
from vdm_jax.video.writing import write_video

CONFIG = '''
import dataclasses
from tests.commands import tiny
from vdm_jax.data.video_folder import VideoFolder

def get_config():
    stage = tiny.stage("base", 8, None, False)
    data = VideoFolder(path="videos", frames=4, height=8, width=8)
    return dataclasses.replace(tiny.get_config(), stages=(stage,), data=data)
'''


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command that trains on a folder with one video of eight clips."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    video = np.random.default_rng(0).integers(0, 255, (32, 16, 16, 3), np.uint8)
    write_video(tmp_path / "videos" / "only.mp4", video, fps=8)
    (tmp_path / "small.py").write_text(CONFIG)
    return ["train", "small.py", "--run", "run"]


def test_the_error_names_the_option(command, fails):
    line = fails(*command)
    assert "split 'validation' gets none of 1 files" in line
    assert "validation_split='train' (--validation-split train)" in line


def test_training_clips_serve_for_validation_and_sheets(command, fails, tmp_path):
    assert main([*command, "--validation-split", "train"]) == 0
    assert any("validation_loss" in record for record in read_records(tmp_path / "run" / "base"))
    assert (tmp_path / "run" / "base" / "samples" / "step_0000004.png").stat().st_size > 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["validation_split"] == "train"


def test_fewer_validation_clips_than_devices_are_told_with_the_option(command, fails, tmp_path):
    write_video(tmp_path / "videos" / "other.mp4", np.zeros((32, 16, 16, 3), np.uint8), fps=8)
    write_video(tmp_path / "videos" / "a.mp4", np.zeros((8, 16, 16, 3), np.uint8), fps=8)
    line = fails(*command, "--data.fractions", "0.98", "0.02", "0")  # the validation split is a.mp4
    assert "has 2 clips for 8 devices; permitted: at least 8; or validate on training clips" in line


def test_the_option_takes_two_values(command, fails):
    line = fails(*command, "--validation-split", "test")
    assert "--validation-split='test' is not valid; permitted: 'validation', 'train'" in line


def test_the_option_has_help(command, capsys):
    with pytest.raises(SystemExit):
        main([*command[:2], "--help"])
    assert "its validation split has none" in " ".join(capsys.readouterr().out.split())
