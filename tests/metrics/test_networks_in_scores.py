"""Scores of video files by the networks at their published sizes, with weights drawn at random."""

import numpy as np
import pytest

from tests.metrics.detectors.test_c3d import MEAN
from tests.metrics.detectors.test_inception import drawn
from vdm_jax.evaluation.video_files import FileSettings, evaluate_files
from vdm_jax.metrics.detectors import c3d, clip, weights
from vdm_jax.metrics.features import inception_kind
from vdm_jax.metrics.frechet import Moments, frechet_distance
from vdm_jax.metrics.image_protocols import FID_PROTOCOLS
from vdm_jax.video.writing import write_video
from vdm_jax.weights import model_kinds
from vdm_jax.weights.safetensors import save_params


def c3d_arrays():
    rng = np.random.default_rng(0)
    made = {"mean": MEAN}
    for name, tree in c3d._expected(64, 4096).items():
        shape = tree["conv"]["kernel"].shape if "conv" in tree else tree["kernel"].shape
        theirs = (shape[4], shape[3], *shape[:3]) if len(shape) == 5 else shape[::-1]
        made[f"{name}.weight"] = rng.standard_normal(theirs, np.float32) * (2 / np.prod(theirs[1:])) ** 0.5
        made[f"{name}.bias"] = np.zeros(theirs[0], np.float32)
    made["fc8.weight"], made["fc8.bias"] = rng.standard_normal((101, 4096), np.float32) / 64, np.zeros(101, np.float32)
    return made


def clip_tensors(model):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) / 50 for config in (model.text, model.vision)
            for name, shape in model_kinds.inventory(config).items()}


def write_videos(folder, count, frames):
    """Bright videos in `made`, darker ones in `real`, each with a caption."""
    rng, videos = np.random.default_rng(0), {}
    for side, brightest in (("made", 256), ("real", 128)):
        videos[side] = rng.integers(0, brightest, (count, frames, 16, 24, 3), np.uint8)
        for i, video in enumerate(videos[side]):
            write_video(folder / side / f"{i}.mp4", video, lossless=True)
            (folder / side / f"{i}.txt").write_text("a b")
    return videos


@pytest.fixture
def detectors(tmp_path, monkeypatch):
    """The user's folder of weights."""
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "detectors"))
    weights.load.cache_clear()
    yield tmp_path / "detectors"
    weights.load.cache_clear()


def scored(folder, *metrics, **changes):
    settings = FileSettings(metrics=metrics, resamples=0, **changes)
    found = {score.metric: score for score in evaluate_files(folder / "made", settings, folder / "real").scores}
    assert all("not vouched for" in score.detector for score in found.values())
    return {name: score.value for name, score in found.items()}


@pytest.mark.full
def test_inception_scores_files(tmp_path, detectors):
    arrays = {name: np.float32(array) for name, array in drawn("fid").items()}
    arrays |= {name: array / np.float32(np.prod(array.shape[1:])) ** 0.5 for name, array in arrays.items()
               if name.endswith(".conv.weight")}
    save_params(detectors / "inception_2015.safetensors", arrays)
    videos = write_videos(tmp_path, 2, 1)
    kind = inception_kind(FID_PROTOCOLS["fid_tensorflow"])
    pictures = [np.reshape(videos[side], (-1, *videos[side].shape[2:])) for side in ("real", "made")]
    sides = [Moments.of(kind.make(one[:, None])[:, 0]) for one in pictures]
    assert scored(tmp_path, "fid")["fid"] == pytest.approx(frechet_distance(*sides), rel=1e-4)


@pytest.mark.full
def test_c3d_scores_files(tmp_path, detectors):
    save_params(detectors / "c3d_ucf101.safetensors", c3d_arrays())
    write_videos(tmp_path, 2, 16)
    found = scored(tmp_path, "fvd_c3d", "is_c3d", c3d_protocol="tganv2_ucf")
    assert found["fvd_c3d"] > 0 and 1 <= found["is_c3d"] <= 101


@pytest.mark.full
def test_clip_scores_files(tmp_path, detectors):
    model = clip.MODELS["ViT-B-32"]
    save_params(detectors / model.file.path, clip_tensors(model))
    # As many tokens as the published list makes.
    (detectors / model.file.path).with_name("merges.txt").write_text("#version: 0.2\n" + "a b\n" * 48_894)
    write_videos(tmp_path, 2, 2)
    found = scored(tmp_path, "clipsim", "prompt_consistency", "clip_frame_consistency", clip="ViT-B-32")
    assert found["clipsim"] == found["prompt_consistency"] and -1 <= found["clipsim"] <= 1
    assert 0 < found["clip_frame_consistency"] <= 1
