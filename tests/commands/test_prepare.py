import numpy as np
import pytest

from vdm_jax.commands.main import main
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.opening import open_source
from vdm_jax.video.writing import write_png, write_video

CONFIG = """
import dataclasses
from tests.commands.tiny import stage
from vdm_jax.cascade.stage import Experiment
from vdm_jax.data.array_record import PreparedClips


def get_config():
    return Experiment(name="mine", stages=(stage("base", 8, None, True),), data=PreparedClips(path="clips"))
"""


@pytest.fixture
def folder(tmp_path):
    """Short videos of three colours, their captions, and one file that is no video."""
    rng = np.random.default_rng(0)
    videos = tmp_path / "videos"
    videos.mkdir()
    rows = ["file,caption"]
    for i in range(48):
        name = ("red", "green", "blue")[i % 3]
        video = rng.integers(0, 60, (8, 24, 32, 3)).astype(np.uint8)
        video[..., i % 3] += 150
        write_video(videos / f"{i}.mp4", video, fps=8)
        rows.append(f"{i}.mp4,{name} noise number {i}")
    (videos / "broken.mp4").write_bytes(b"this is no video")
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    return videos


def test_folder_of_videos_is_prepared_trained_on_and_sampled(folder, tmp_path, capfd):
    assert main(["prepare", str(folder), "--out", "clips", "--frames", "4", "--size", "16", "16",
                 "--captions", "captions.csv", "--format", "raw"]) == 0
    printed = capfd.readouterr()
    assert "broken.mp4" in printed.out + printed.err  # counted with the split it belongs to
    source = open_source(PreparedClips(path="clips"), "train")
    assert source[0]["video"].shape == (4, 16, 16, 3) and "noise number" in source[0]["caption"]

    (tmp_path / "mine.py").write_text(CONFIG)
    size = str(len(source) // 8 * 8)
    assert main(["train", "mine.py", "--base.training.steps", "1", "--base.training.batch-size", size,
                 "--base.training.validate-every", "0"]) == 0
    assert main(["sample", "runs/mine", "red noise", "--out", "red.gif"]) == 0
    assert (tmp_path / "red.gif").exists()


def test_preparing_into_an_existing_folder_is_refused(folder, tmp_path, fails):
    (tmp_path / "clips").mkdir()
    assert "exists already" in fails("prepare", folder, "--out", "clips")
    assert list((tmp_path / "clips").iterdir()) == []


def test_the_data_of_a_config_is_counted_or_asked_for(tmp_path, fails, capfd):
    assert "Fetch bair_robot_pushing_dataset_v0.tar (32 GB) from http://" in fails("prepare", "vdm/bair")
    for video in ("train/0", "train/1", "test/0"):
        for number in range(16):
            write_png(tmp_path / "data" / "bair" / video / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    assert main(["prepare", "vdm/bair"]) == 0
    expected = "nothing to prepare: BAIRRobotPushing is read as it is (clips: train 2, validation 1, test 1)"
    assert expected in capfd.readouterr().out
