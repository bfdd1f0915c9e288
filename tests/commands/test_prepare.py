import errno
import logging

import numpy as np
import pytest

from vdm_jax.commands.main import main
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.video.writing import write_png, write_video

CONFIG = """
import dataclasses
from tests.commands.tiny import stage
from vdm_jax.stages.stage import Experiment
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


@pytest.fixture
def few(tmp_path):
    """Six videos of 24x32 pixels and 8 frames per second, whose frame n is grey of level 20 n, left half white."""
    video = np.broadcast_to((20 * np.arange(12, dtype=np.uint8))[:, None, None, None], (12, 24, 32, 3)).copy()
    video[:, :, :16] = 255
    for i in range(6):
        path = tmp_path / "videos" / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, video, fps=8, lossless=True)
    return path.parent


def prepared(few, out, *options):
    assert main(["prepare", str(few), "--out", out, "--frames", "3", "--size", "12", "12", "--format", "raw",
                 *options]) == 0
    return open_source(PreparedClips(path=out), "train")


def test_any_number_of_workers_writes_the_same_bytes(few, tmp_path):
    for workers in ("1", "3"):
        prepared(few, f"with{workers}", "--workers", workers)
    files = sorted(path.relative_to(tmp_path / "with1") for path in (tmp_path / "with1").rglob("*") if path.is_file())
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "with1" / file).read_bytes() == (tmp_path / "with3" / file).read_bytes()


def test_frames_come_at_the_rate_asked_for(few):
    own, slower = prepared(few, "own"), prepared(few, "slower", "--fps", "4")
    grey = [(source[0]["video"][:, 6, 11, 0] / 20).round().tolist() for source in (own, slower)]
    assert own[0]["fps"] == 8 and grey[0] == [0, 1, 2]
    assert slower[0]["fps"] == 4 and grey[1] == [0, 2, 4]


def test_frames_of_another_shape_are_cut_as_asked(few):
    shown = {crop: prepared(few, crop, "--crop", crop)[0]["video"][0, 6, :, 0] for crop in
             ("center", "random", "pad", "squeeze")}
    white = {crop: int((row > 200).sum()) for crop, row in shown.items()}
    assert white["center"] == 6 and white["squeeze"] == 6 and white["pad"] == 6
    assert 4 <= white["random"] <= 8 and (np.diff(shown["random"].astype(int)) <= 0).all()
    clip = open_source(PreparedClips(path="pad"), "train")[0]["video"]
    assert clip[:, :1].max() < 4 and clip[:, -1:].max() < 4 and clip[0, 2:-2, 0].min() > 200  # black above and below


@pytest.mark.parametrize("out", ["videos/0.mp4", "videos/0.mp4/clips", "/proc/clips", "x" * 300])
def test_places_that_cannot_be_written_are_refused_before_the_work(few, out, fails, monkeypatch):
    monkeypatch.setattr("vdm_jax.commands.prepare_command.open_source", lambda *_: pytest.fail("the work began"))
    assert "--out" in fails("prepare", few, "--out", out)


def test_a_full_disk_leaves_nothing_behind(few, tmp_path, fails, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert "No space left on device" in fails("prepare", few, "--out", "clips", "--frames", "3", "--size", "12", "12")
    assert sorted(tmp_path.rglob("*")) == before


def test_training_goes_on_without_damaged_clips_and_names_them_once(few, tmp_path, caplog):
    path = few / "3.mp4"
    data = bytearray(path.read_bytes())
    spec = VideoFolder(path=str(few), frames=3, height=12, width=12, fractions=(1.0, 0.0, 0.0))
    source = open_source(spec, "train")  # indexed while it was whole
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING), Pipeline(source, batch_size=8, seed=0).iterate() as batches:
        shapes = {next(batches)["video"].shape for _ in range(10)}
    assert shapes == {(8, 3, 12, 12, 3)}
    assert caplog.text.count("skipped 3.mp4: ") == 1 and "skipped 3.mp4: /" not in caplog.text
    assert list(source.skipped) == ["3.mp4"] and source.skipped.replaced
