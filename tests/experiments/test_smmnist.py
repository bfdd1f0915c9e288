"""The floor of Stochastic Moving MNIST: what the predictions are, and that the page shows what is recorded."""

import numpy as np
import pytest

from experiments.readme_tables import insert
from experiments.smmnist import predictors, report
from vdm_jax.benchmark.record import load
from vdm_jax.data import smmnist


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


def test_the_page_shows_the_record():
    if not report.RECORD.exists():
        pytest.skip("not recorded yet")
    text, record = report.README.read_text(), load(report.RECORD)
    for name, body in (("floor", report.floor(record)), ("others", report.others()), ("made", report.made(record))):
        assert insert(text, name, body) == text, "write it anew: python -m experiments.smmnist.report"
    check = record["rows"].get("black against white")
    assert check is None or check["fvd"]["score"]["value"] == pytest.approx(151.26, abs=0.5)
