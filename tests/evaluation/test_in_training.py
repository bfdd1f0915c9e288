"""Scores while training: what is asked for, what is refused before training begins, what is written."""

import dataclasses
import json

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import generate_clip
from vdm_jax.evaluation import in_training, run_metrics
from vdm_jax.evaluation.checkpoints import read_metrics, read_record
from vdm_jax.evaluation.in_training import StageEvaluation, metrics_of
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.measures import COMPANIONS, MEASURES
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.options import Evaluation, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

SPEC = CaptionedDigits(frames=10, size=64)


def experiment_of(*metrics, size=64, frames=10, source=False, data=SPEC, clips=4):
    low = LowResolution(frames=frames, height=size // 2, width=size // 2) if source else None
    stage = Stage(name="base", video=VideoSpec(frames=frames, height=size, width=size), process=Process(), source=low,
                  network=UNet(levels=(Level(channels=4),), low_resolution=source),
                  training=Training(evaluation=Evaluation(every=1, clips=clips, metrics=metrics)))
    return Experiment(name="tiny", stages=(stage,), data=data, validation_split="train")


def asked(*metrics, **options):
    experiment = experiment_of(*metrics, **options)
    return metrics_of(experiment, experiment.stages[0])


@pytest.fixture
def everything_here(monkeypatch):
    """Weights and OpenCV as if they were installed."""
    monkeypatch.setattr(weights, "find", lambda file: None)
    monkeypatch.setattr(run_metrics.flow, "require_opencv", lambda: None)


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """A function that evaluates a stage which makes the given videos of real clips."""

    class Samples:
        def __init__(self, experiment, stage, count, mesh, data_dir, autoencoder):
            drawn = [generate_clip(experiment.data, "train", i) for i in range(count)]
            self.real, self.captions = np.stack([clip.video for clip in drawn]), [clip.caption for clip in drawn]
            self.count, self.source_frames = count, experiment.data.frames

        def videos(self, params, progress):
            progress(self.count)
            return params(self.real)

    monkeypatch.setattr(in_training, "StageSamples", Samples)

    def run(experiment, videos, step=7):
        return StageEvaluation(experiment, experiment.stages[0], tmp_path, None, None)(videos, step)

    return run


def test_what_is_asked_for(everything_here):
    assert asked() == ("digits", "motion")
    assert asked(size=16) == ("digits",)  # optical flow needs larger frames
    assert asked(data=VideoFolder(path="x")) == ("motion",)
    assert asked("digits", "fvd") == ("digits", "fvd", "motion", "frame_lpips")  # never alone
    assert asked("motion", "kvd") == ("motion", "kvd", "frame_lpips")
    assert asked("psnr", "ssim", source=True) == ("psnr", "ssim")


METRICS = "Stage.training.evaluation.metrics"


@pytest.mark.parametrize(("metrics", "options", "message"), [
    (("fid",), {}, (METRICS, "'fid'", "CaptionedDigits: digits, fvd")),
    (("digits",), {"data": VideoFolder(path="x")}, (METRICS, "'digits'", "VideoFolder: fvd, ")),
    ((), {"data": VideoFolder(path="x"), "size": 16}, (METRICS, "=()", "10x16x16 videos of VideoFolder")),
    (("psnr",), {}, (METRICS, "'psnr'", "'base'")),
    (("fvd",), {"frames": 8}, ("feature_scores.require_sight", "8 frames", "from 9")),
    (("motion",), {"size": 16}, ("run_metrics.require_visible", "16x16", "from 32 a side, 2 frames")),
])
def test_what_cannot_be_scored_is_refused_before_training(metrics, options, message, everything_here):
    with refused(*message):
        asked(*metrics, **options)


def test_a_missing_detector_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(weights, "I3D", dataclasses.replace(weights.I3D, path="no_such_package/file.ckpt"))
    with refused("weights.find", "i3d_kinetics400"):
        asked("fvd")


@pytest.mark.parametrize(("values", "message"), [({"every": -1}, ("Evaluation.every", ">= 0")),
                                                 ({"clips": 1}, ("Evaluation.clips", ">= 2"))])
def test_bad_options_are_refused(values, message):
    with refused(*message):
        Evaluation(**values)


def test_scores_go_to_the_stream_and_to_a_record(evaluate, tmp_path):
    found = evaluate(experiment_of("digits", "psnr", source=True), lambda real: real[:, ::-1])
    assert found["evaluation/digits/colour"] == found["evaluation/real/digits/colour"] == 1
    assert found["evaluation/digits/motion"] < found["evaluation/real/digits/motion"]  # time runs backwards
    assert 5 < found["evaluation/psnr"] < 40 and "evaluation/real/psnr" not in found
    path = tmp_path / "evaluation" / "training_0000007.json"
    metrics = read_metrics(read_record(path), path)
    assert [score.metric for score in metrics.scores][-1] == "psnr" and len(metrics.real) == 5
    assert metrics.settings["step"] == 7
    for name, value in {"videos": 4, "from": "degraded real clips", "size": "64x64", "split": "train"}.items():
        assert metrics.scores[-1].conditions[name] == value


def test_distances_have_their_protocol_and_features_are_taken_once(evaluate, everything_here, monkeypatch, tmp_path):
    seen = []

    def features(clips, resize):
        seen.append(len(clips))
        return np.asarray(clips, float).mean((1, 2, 3))

    monkeypatch.setattr(in_training, "i3d_features", features)
    for name in COMPANIONS:
        measure = dataclasses.replace(MEASURES[name], values=lambda videos: np.full(len(videos), 0.5))
        monkeypatch.setitem(MEASURES, name, measure)
    found = evaluate(experiment_of("fvd", "kvd"), lambda real: 255 - real)
    assert seen == [4, 4] and found["evaluation/fvd"] > 10  # real and generated
    assert {"evaluation/motion", "evaluation/real/frame_lpips"} < set(found)
    record = json.loads((tmp_path / "evaluation" / "training_0000007.json").read_text())
    score = record["scores"][0]
    assert score["label"] == "fvd (original)" and score["conditions"]["generated_clips"] == 4
    assert score["detector_sha256"] == weights.I3D.sha256


def test_metrics_next_to_fvd_catch_frozen_and_shuffled_frames(trained):
    """With the real detectors, on a camera that moves over photographs."""
    pytest.importorskip("cv2", reason="optical flow needs the extra [metrics]")
    trained(weights.ALEXNET)
    from sklearn.datasets import load_sample_images

    real = np.stack([photo[100 + 20 * i : 164 + 20 * i, 200 + 2 * t : 264 + 2 * t]  # 2 pixels a frame
                     for photo in load_sample_images().images for i in range(2)
                     for t in range(10)]).reshape(4, 10, 64, 64, 3)
    order = np.random.default_rng(0).permutation(10)
    for name in COMPANIONS:
        sets = real, real[:, :1].repeat(10, 1), real[:, order]
        ours, frozen, shuffled = (MEASURES[name].values(videos).mean() for videos in sets)
        assert frozen < 0.05 * ours and shuffled > 1.4 * ours, (name, ours, frozen, shuffled)
