"""The floor of Stochastic Moving MNIST: what the predictions are, and that the page shows what is recorded."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.readme_tables import insert
from experiments.smmnist import extension, models, predictors, report
from tests.commands import tiny_smmnist
from vdm_jax.benchmark.record import load
from vdm_jax.commands.main import main
from vdm_jax.data import smmnist
from vdm_jax.metrics import features, frames
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.prediction import video_mse


@pytest.fixture
def source(monkeypatch):
    digits = np.random.default_rng(0).integers(0, 256, (300, 28, 28)).astype(np.uint8)
    monkeypatch.setattr(smmnist, "mnist_digits", lambda part, path: digits)
    monkeypatch.setattr(predictors, "CLIPS", 3)
    monkeypatch.setattr(predictors, "AVERAGED", 4)
    return predictors.test_clips()


def test_predictions_begin_with_the_given_frames(source):
    real = predictors.real(source)
    assert real.shape == (3, 15, 64, 64, 3)
    made = {"oracle": predictors.oracle(source, 0), "another": predictors.oracle(source, 1),
            "mean": predictors.blurred_mean(source), "last": predictors.last_frame(source),
            "black": predictors.black(source)}
    for name, videos in made.items():
        np.testing.assert_array_equal(videos[:, :5], real[:, :5])
        assert (videos[:, 5:] != real[:, 5:]).any(), name
    assert (made["oracle"] != made["another"]).any()
    assert (made["last"][:, 5:] == real[:, 4:5]).all() and not made["black"][:, 5:].any()
    # The mean of samples is nearer to what follows than a sample is, and shows it paler.
    errors = {name: np.mean((made[name][:, 5:] / 255 - real[:, 5:] / 255) ** 2) for name in ("oracle", "mean")}
    assert errors["mean"] < errors["oracle"]
    assert made["mean"][:, 5:].astype(float).std() < made["oracle"][:, 5:].astype(float).std()


def score(value, best=1, **details):
    return {"value": value, "conditions": {"best_of": best}, "details": {"one video a clip": value, **details}}


def test_the_table_says_how_many_trajectories_there_are():
    def row(best, psnr):
        return {"score": {"mcvd_mse": score(0.02, best), "psnr_floored": score(psnr, best),
                          "mcvd_ssim": score(0.8, best)}, "seconds": 60.0}

    distance = {"value": 7.5, "details": {"trajectories": [7.0, 8.0], "deviation": 0.7}}
    record = {"rows": {"oracle": {"frames": row(10, 17.0), "fvd": {"score": distance, "seconds": 1.0}},
                       "blurred mean": {"frames": row(1, 22.0)},
                       "black against white": {"fvd": {"score": {"value": 151.3}, "seconds": 1.0}}}}
    shown = report.floor(record)
    assert "| oracle, best of 10 | 7.50 +- 0.70 | 2 | 0.0200 | 17.00 | 0.800 | - |" in shown
    assert "| oracle, one sample | - | - |" in shown and "| blurred mean | - | - | 0.0200 | 22.00 |" in shown
    assert "of 2 trajectories; the protocol has 10" in shown and "give 151.30" in shown


def test_values_of_others_say_that_they_are_recalled():
    rows = report.others().splitlines()[2:]
    assert len(rows) == 12 and sum(row.endswith("| as recalled |") for row in rows) == 10
    mcvd = next(row for row in rows if row.startswith("| MCVD concat, 27.9 M |"))
    assert mcvd.endswith("| 5 -> 10, trained on 5 | 25.63 | 17.22 | 0.786 | 0.117 | 0.024 | as recalled |")


@pytest.mark.full
def test_checkpoints_of_a_run_are_measured_once(source, tmp_path, monkeypatch):
    for package in ("cv2", "skimage"):
        pytest.importorskip(package, reason="needs the extra [metrics]")
    monkeypatch.setattr(weights, "find", lambda file: None)
    monkeypatch.setattr(features, "i3d_features",
                        lambda clips, resize: np.asarray(clips, float).mean((2, 3, 4))[:, 4:8])
    monkeypatch.setattr(frames, "lpips", lambda videos, real, *options, **more: video_mse(videos, real))
    monkeypatch.setattr(models, "PROTOCOL", dataclasses.replace(models.PROTOCOL, real_clips=3))
    run, out = tmp_path / "run", tmp_path / "models.json"
    sizes = [f"--{stage}.training.checkpoint-every=1" for stage in ("base", "spatial")]
    assert main(["train", str(Path(tiny_smmnist.__file__)), "--run", str(run), *sizes]) == 0
    for trajectories in ("1", "1", "2"):  # the second time everything is there
        monkeypatch.setattr(sys, "argv", ["models", str(run), "--trajectories", trajectories, "--out", str(out),
                                          "--checkpoints", "all" if trajectories == "1" else "newest"])
        models.main()
    rows = list(load(out)["rows"].values())
    assert [(row["trained_steps"], row["trajectories"]) for row in rows] == [
        ({"base": 2, "spatial": 1}, 1), ({"base": 2, "spatial": 2}, 1), ({"base": 2, "spatial": 2}, 2)]
    assert 0 < rows[0]["train_tflop"] < rows[1]["train_tflop"] == rows[2]["train_tflop"]
    assert len(rows[2]["scores"]["fvd"]["details"]["trajectories"]) == 2 and rows[0]["sampling_steps"] == "1/1"
    assert "| tiny_smmnist | base 2, spatial 1 |" in report.models(load(out))


@pytest.mark.full
def test_ways_of_extension_are_measured_once(source, tmp_path, monkeypatch):
    monkeypatch.setattr(extension, "i3d_features",
                        lambda clips, resize: np.asarray(clips, float).mean((2, 3, 4))[:, 4:8])
    run, out = tmp_path / "run", tmp_path / "extension.json"
    assert main(["train", str(Path(tiny_smmnist.__file__)), "--stage", "base", "--run", str(run)]) == 0
    monkeypatch.setattr(sys, "argv", ["extension", str(run), "--clips", "4", "--frames", "36", "--steps", "2", "--out",
                                      str(out)])
    extension.main()
    first = out.read_bytes()
    extension.main()
    found = load(out)
    assert out.read_bytes() == first and list(found["rows"]) == list(extension.WAYS)
    assert found["protocol"]["windows"] == 4 * 2 and found["protocol"]["window"] == 15  # seams at 15 and 25
    assert all(row["fvd"]["value"] > 0 and row["change"] > 0 for row in found["rows"].values())
    assert (tmp_path / "extension_conditioned.gif").exists()
    shown = report.extension(found)
    assert "| conditioned |" in shown and "published for other data is 3.3" in shown


def test_models_are_drawn_by_training_and_by_sampling(tmp_path):
    def row(name, tflop, steps, distance):
        scores = {metric: score(0.03, 2) for metric in ("mcvd_mse", "mcvd_ssim", "mcvd_lpips")}
        return {"experiment": name, "trained_steps": {"base": 7}, "train_tflop": tflop, "sampling_steps": steps,
                "trajectories": 2, "scores": scores | {"fvd": {"value": distance, "details": {}}}}

    rows = [row("one", 3.0, "20", 80.0), row("one", 9.0, "20", 60.0), row("one", 9.0, "4", 90.0),
            row("two", 5.0, "32/8", 70.0)]
    trained = {"rows": dict(enumerate(rows)), "versions": {"jax": "0"}, "device": {"kind": "x", "cores": 2},
               "date": "-"}
    assert report.models(None) == "None is trained yet."
    assert "| one | base 7 | 9 | 4 | 2 | 90.00 | 0.0300 | 0.030 | 0.030 | 0.0300 | 0.030 |" in report.models(trained)
    longest, ordered = report._curves(trained)["one"]
    assert longest == 9.0 and [found["train_tflop"] for found in ordered] == [3.0, 9.0, 9.0]
    pytest.importorskip("matplotlib")
    report.draw(trained, {"rows": {"oracle": {}}}, tmp_path / "models.png")
    assert (tmp_path / "models.png").stat().st_size > 5000


def test_the_page_shows_the_record():
    text, record = report.README.read_text(), load(report.RECORD)
    trained = load(report.MODELS) if report.MODELS.exists() else None
    longer = load(report.EXTENSION) if report.EXTENSION.exists() else None
    for name, body in report.bodies(record, trained, longer).items():
        assert insert(text, name, body) == text, "write it anew: python -m experiments.smmnist.report"
    check = record["rows"].get("black against white")
    assert check is None or check["fvd"]["score"]["value"] == pytest.approx(151.39, abs=0.02)
