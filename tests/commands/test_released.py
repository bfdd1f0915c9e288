"""Commands of runs on the folders of released models, and captions for runs whose texts a released encoder reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.pipelines.folders import write_motion, write_videos
from tests.weights.test_tokenizers import write_clip
from vdm_jax.commands.main import main
from vdm_jax.configuration import from_json
from vdm_jax.runs.directory import open_run, read_cascade
from vdm_jax.stages.stage import Experiment
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png, write_video

QUICK = ("--steps", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Like AnimateDiff: four frames of 16 x 16 pixels."""
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    return write_motion(tmp_path_factory.mktemp("released") / "motion")


@pytest.fixture
def model(folder, tmp_path):
    """A copy into which commands may write."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def frames(path):
    with VideoReader(path) as video:
        return len(video)


def test_sample(model, fails):
    assert main(["sample", str(model), "a red three", "red", *QUICK, "--out", "two.png", "two.gif"]) == 0
    assert frames("two.gif") == 4
    assert main(["sample", str(model), "red", *QUICK, "--frames", "6", "--overlap", "2", "--out", "long.gif"]) == 0
    assert frames("long.gif") == 6
    assert "captions are missing" in fails("sample", model)
    assert "--embeddings=" in fails("sample", model, "red", "--encoder", model, "--embeddings", model)
    assert "video.height=15 does not divide into latents" in fails("sample", model, "red", "--height", "15")


@pytest.mark.full
def test_sample_of_a_picture(tmp_path):
    write_videos(tmp_path / "svd")
    write_png(tmp_path / "picture.png", np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8))
    assert main(["sample", "svd", "--image", "picture.png", "--height", "8", "--width", "12", "--fps", "5", *QUICK,
                 "--out", "animated.gif"]) == 0
    assert frames("animated.gif") == 3


CLIPS = '''
import dataclasses
from tests.commands import tiny
from vdm_jax.digits.captioned_digits import CaptionedDigits

def get_config():
    return dataclasses.replace(tiny.get_config(), data=CaptionedDigits(
        size=32, frames=4, train_clips=2, validation_clips=2, test_clips=2))
'''


def test_evaluate_and_report(model, fails):
    Path("clips.py").write_text(CLIPS)
    measure = ["evaluate", str(model), "--data", "clips.py", "--metrics", "frame_consistency", "--count", "2",
               "--height", "32", "--width", "32", *QUICK]
    assert "--data is missing for" in fails(*measure[:2], *measure[4:])
    assert "--metrics with --data" in fails("evaluate", model)
    assert main(measure) == 0
    scores = json.loads((model / "metrics.json").read_text())
    assert np.isfinite(scores["scores"][0]["value"]) and scores["settings"]["experiment"] == "model"
    assert main(["report", str(model)]) == 0
    page = (model / "report.html").read_text()
    assert "frame_consistency" in page and "video 4x16x16" in page


def test_what_has_no_data_says_so(model, fails):
    """A run that a folder was exported as has none either, nor may a config that is trained be without."""
    kept = Path("kept")
    open_run(kept, read_cascade(model))
    assert "--metrics with --data" in fails("evaluate", kept) and "--metrics with --data" in fails(
        "evaluate", kept, "--checkpoints", "all")
    assert "--data is missing for" in fails("evaluate", kept, "--metrics", "motion")
    Path("none.py").write_text(CLIPS.replace("data=CaptionedDigits(", "data=None and CaptionedDigits("))
    assert "none.py: Experiment.data=None; permitted: a data set" in fails("train", "none.py")


def test_show_and_compile(model, capsys):
    assert main(["show", str(model), "--filter", "sampling.scheduler"]) == 0
    assert "video.sampling.scheduler.scheduler DDIMScheduler" in capsys.readouterr().out
    assert main(["compile", str(model), "--what", "sample", "--batch", "8", "--video.sampling.steps", "2",
                 "--cache", "plans", "--out", "report.json"]) == 0
    assert json.loads(Path("report.json").read_text())["status"] == "compiled"


@pytest.mark.full
def test_export(model):
    """What is exported samples like the folder, and still encodes captions."""
    assert main(["export", str(model), "exported"]) == 0
    assert from_json(Experiment, Path("exported/config.json").read_text()).stages[0].latent.sha256
    for name, out in ((str(model), "one.png"), ("exported", "other.png")):
        assert main(["sample", name, "a red three", *QUICK, "--seed", "3", "--out", out]) == 0
    assert Path("one.png").read_bytes() == Path("other.png").read_bytes()


CONFIG = '''
import dataclasses
from tests.commands import tiny
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.config import EmbeddedText

def get_config():
    stage = tiny.stage("base", 8, None, True)
    return dataclasses.replace(
        tiny.get_config(), validation_split="train",
        stages=(dataclasses.replace(
            stage, network=dataclasses.replace(stage.network, text=EmbeddedText(width=8)),
            training=dataclasses.replace(stage.training, steps=1, validate_every=0, checkpoint_every=1),
            sampling=dataclasses.replace(stage.sampling, guidance=1.0)),),
        data=WithEmbeddings(path="texts", length=6, empty="EMPTY", data=VideoFolder(
            path="videos", captions="videos.csv", frames=4, height=8, width=8, fractions=(1.0, 0.0, 0.0))))
'''


@pytest.mark.parametrize("empty", ["encoded", pytest.param("none", marks=pytest.mark.full)])
def test_a_run_that_reads_embeddings_takes_captions(empty, folder, tmp_path, fails, monkeypatch):
    """By the encoder that its embeddings were made with: the same videos as from the embeddings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, captions = np.random.default_rng(0), ("a red three", "moving")
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4", rng.integers(0, 255, (16, 16, 16, 3), np.uint8), fps=8)
    Path("videos.csv").write_text(f"file,caption\n0.mp4,{captions[0]}\n1.mp4,{captions[1]}\n")
    Path("embedded.py").write_text(CONFIG.replace("EMPTY", empty))
    encoder = shutil.copytree(folder, tmp_path / "encoder")
    assert main(["embed", "embedded.py", "--encoder", str(encoder)]) == 0
    assert main(["train", "embedded.py", "--run", "run"]) == 0
    stored = read_cascade(Path("run")).encoder
    assert stored.path == str(encoder) and len(stored.sha256) == 64
    ways = {"set": ("--embeddings", "texts"), "run": (), "given": ("--encoder", str(folder))}
    for name, way in ways.items():
        assert main(["sample", "run", *captions, *way, "--out", f"{name}.png"]) == 0
    assert Path("set.png").read_bytes() == Path("run.png").read_bytes() == Path("given.png").read_bytes()
    assert main(["sample", "run", "red three red", "--out", "other.png"]) == 0  # which the set does not have
    write_clip(tmp_path / "another" / "tokenizer", length=6)
    shutil.copytree(encoder / "text_encoder", tmp_path / "another" / "text_encoder")
    weights = tmp_path / "another" / "text_encoder" / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({key: tensor + 1 for key, tensor in tensors.items()}, weights)
    assert "and the run was trained with" in fails("sample", "run", "red", "--encoder", "another")
    shutil.rmtree(encoder)
    assert "encoder" in fails("sample", "run", "red")
