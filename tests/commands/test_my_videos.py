"""The README's recipe for one's own videos, on small videos and the first network of `my_videos` cut to a level."""

import csv

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.commands import train_command
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.main import main
from vdm_jax.commands.sample_command import Sample, captions_for
from vdm_jax.training.report import Report
from vdm_jax.video.writing import write_video

SMALL = '''
import dataclasses
from vdm_jax.networks.config import Level
from vdm_jax_configs import my_videos

def small(stage):
    level = dataclasses.replace(stage.network.levels[0], channels=8, blocks=1, mixers=())
    network = dataclasses.replace(stage.network, levels=(level,), middle=(), patch=8, groups=2, embedding_channels=16)
    training = dataclasses.replace(stage.training, steps=2, batch_size=8, warmup_steps=1, log_every=1)
    sampling = dataclasses.replace(stage.sampling, steps=1)
    return dataclasses.replace(stage, network=network, training=training, sampling=sampling)

def get_config():
    experiment = my_videos.get_config()
    return dataclasses.replace(experiment, stages=(small(experiment.stages[0]),), validation_split="train")
'''


@pytest.fixture
def folder(tmp_path):
    """A folder of 22 videos of two rates and shapes, 3 seconds each, and their captions."""
    random, rows = np.random.default_rng(0), [("file", "caption")]
    for number in range(22):
        fps, size = ((8, (40, 56)), (16, (56, 40)))[number % 2]
        video = np.repeat(random.integers(0, 255, (1, *size, 3), np.uint8), 3 * fps, axis=0)
        write_video(tmp_path / "videos" / f"clip {number}.mp4", video, fps=fps)
        rows.append((f"clip {number}.mp4", "a dog, running" if number % 2 else "a cat sleeps"))
    with open(tmp_path / "videos" / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


@pytest.mark.full
def test_the_recipe_from_videos_to_samples(folder, fails, capfd, caplog):
    prepare = ["prepare", "videos", "--out", "data/my_videos", "--fps", "8", "--captions", "videos/captions.csv"]
    assert main(prepare) == 0
    assert "data/my_videos/train: 20 clips\n" in capfd.readouterr().out
    (folder / "small.py").write_text(SMALL)
    assert main(["train", "small.py"]) == 0
    log = capfd.readouterr().err
    assert "stage base: step 2/2, loss" in log and " ms waiting for data)\n" in log  # whole lines, no time left
    assert max(map(len, log.splitlines())) > 80
    assert main(["sample", "my_videos", "--count", "2", "--out", "new.mp4"]) == 0 and (folder / "new.mp4").exists()
    assert "--metrics motion" in fails("evaluate", "my_videos")
    assert main(["report", "my_videos"]) == 0 and (folder / "runs" / "my_videos" / "report.html").exists()
    assert main(["export", "my_videos", "exported"]) == 0
    assert main(["sample", "exported", "a word", "--out", "again.png"]) == 0
    assert "no stage of run exported reads captions: they change nothing" in caplog.text


def test_captions_become_the_vocabulary(folder):
    prepare = ["prepare", "videos", "--out", "data/my_videos", "--fps", "8", "--captions", "videos/captions.csv"]
    assert main(prepare) == 0
    experiment = train_command.resolve(load_config("my_captioned_videos"), folder / "runs" / "none", None)
    assert {"dog", "running", "cat", "sleeps"} < set(experiment.stages[0].network.text.words)
    assert experiment.stages[1].network.text is None


def test_a_run_without_captions_needs_none():
    """One video, or one for each label; runs that read captions need them."""
    plain, captioned = load_config("my_videos"), load_config("my_captioned_videos")
    assert captions_for(Sample("my_videos"), plain) == ("",)
    assert captions_for(Sample("my_videos", labels=(1, 2)), plain) == ("", "")
    assert captions_for(Sample("x", ("a dog",)), captioned) == ("a dog",)
    with refused("sample_command.captions_for"):
        captions_for(Sample("x"), captioned)


def test_lines_of_a_log_stay_whole(capsys):
    Report().note("word " * 60)
    assert capsys.readouterr().err.count("\n") == 1
