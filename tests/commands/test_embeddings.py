"""A network that reads text embeddings, trained on clips and images with captions, and sampled: all by the commands."""

import numpy as np
import pytest

from vdm_jax.commands.main import main
from vdm_jax.data.embeddings import write_embeddings
from vdm_jax.runs.records import read_records
from vdm_jax.video.writing import write_png, write_video

CONFIG = '''
import dataclasses
from tests.commands import tiny
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.image_folder import ImageFolder
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.config import EmbeddedText

ALL = (1.0, 0.0, 0.0)

def get_config():
    stage = tiny.stage("base", 8, None, True)
    images = ImageFolder(path="images", captions="images.csv", height=8, width=8, fractions=ALL)
    return dataclasses.replace(
        tiny.get_config(), validation_split="train",
        stages=(dataclasses.replace(
            stage, network=dataclasses.replace(stage.network, text=EmbeddedText(width=6)),
            training=dataclasses.replace(stage.training, steps=2, images_per_clip=2, text_dropout=0.5, validate_every=2,
                                         image_data=WithEmbeddings(data=images, path="texts", length=5))),),
        data=WithEmbeddings(path="texts", length=5, data=VideoFolder(
            path="videos", captions="videos.csv", frames=4, height=8, width=8, fractions=ALL)))
'''
CAPTIONS = ("a red noise", "a green noise", "a still picture")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Videos, images and the embeddings of their captions; one video has no caption."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4", rng.integers(0, 255, (16, 16, 16, 3), np.uint8), fps=8)
        write_png(tmp_path / "images" / f"{number}.png", rng.integers(0, 255, (8, 8, 3), np.uint8))
    (tmp_path / "videos.csv").write_text(f"file,caption\n0.mp4,{CAPTIONS[0]}\n")
    (tmp_path / "images.csv").write_text(f"file,caption\n0.png,{CAPTIONS[2]}\n1.png,{CAPTIONS[1]}\n")
    write_embeddings("texts", CAPTIONS, [rng.normal(size=(3 + n, 6)) for n in range(3)])
    (tmp_path / "embedded.py").write_text(CONFIG)


def test_training_and_sampling(data, fails, tmp_path):
    assert main(["train", "embedded.py", "--run", "run"]) == 0
    record = {name: value for line in read_records(tmp_path / "run" / "base") for name, value in line.items()}
    assert np.isfinite(record["loss"]) and np.isfinite(record["validation_loss"]) and not record["skipped"]
    assert main(["sample", "run", *CAPTIONS[:2], "--embeddings", "texts", "--out", "two.png"]) == 0
    assert (tmp_path / "two.png").stat().st_size > 0
    assert "--embeddings is missing: stage 'base' reads texts as embeddings" in fails("sample", "run", "a red noise")
    assert "no embeddings of 1 of 1 captions, such as 'a blue noise'" in fails(
        "sample", "run", "a blue noise", "--embeddings", "texts")


def test_what_does_not_fit_is_named_before_anything_is_trained(data, fails, tmp_path):
    line = fails("train", "embedded.py", "--run", "run", "--base.network.text.width", "8")
    assert "stage 'base' has EmbeddedText.width=8, and the embeddings of the data set have width 6" in line
    write_embeddings("few", CAPTIONS[1:], [np.ones((2, 6))] * 2)
    line = fails("train", "embedded.py", "--run", "other", "--data.path", "few")
    assert not (tmp_path / "other").exists()  # with the right path the same directory will do
    assert "few has no embeddings of 1 of 1 captions, such as 'a red noise'" in line
    assert not list(tmp_path.glob("*/base/checkpoints/*"))
