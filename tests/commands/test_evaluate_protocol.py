"""`vdm-jax evaluate RUN --protocol mcvd_smmnist`, which says what is measured and on how many clips."""

import json

import jax
import numpy as np
import pytest

from tests.commands import tiny_smmnist
from vdm_jax.commands.evaluate_command import Evaluate, by_protocol
from vdm_jax.commands.main import main
from vdm_jax.data import smmnist
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics import features, frames
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.prediction import video_mse
from vdm_jax.runs.directory import export
from vdm_jax.stages.parameters import initial_params


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    """A run of untrained networks, on digits that are squares, and numbers in the place of networks that measure."""
    pytest.importorskip("cv2", reason="needs the extra [metrics]")
    pytest.importorskip("skimage", reason="needs the extra [metrics]")
    squares = np.broadcast_to(np.arange(40, 240, 10, dtype=np.uint8)[:, None, None], (20, 28, 28)).copy()
    monkeypatch.setattr(smmnist, "mnist_digits", lambda part, path: squares)
    monkeypatch.setattr(weights, "find", lambda file: None)
    monkeypatch.setattr(features, "i3d_features",
                        lambda clips, resize: np.asarray(clips, float).mean((2, 3, 4))[:, 4:8])
    monkeypatch.setattr(frames, "lpips", lambda videos, real, *options, **more: 10 * video_mse(videos, real))
    experiment = tiny_smmnist.get_config()
    params = {stage.name: initial_params(stage, jax.random.key(i)) for i, stage in enumerate(experiment.stages)}
    export(Generator(experiment, params), tmp_path / "run")
    return tmp_path / "run"


def test_the_protocol_says_what_is_measured(predictor, capfd):
    command = ["evaluate", str(predictor), "--protocol", "mcvd_smmnist", "--count", "3", "--samples-per-clip", "2"]
    assert main(command) == 0
    record = json.loads((predictor / "metrics.json").read_text())
    found = {score["metric"]: score for score in record["scores"]}
    assert list(found) == ["fvd", "mcvd_mse", "mcvd_psnr", "mcvd_ssim", "mcvd_lpips", "motion", "frame_lpips"]
    # Nothing else departs from the protocol than the numbers that were given.
    assert sorted(found["fvd"]["deviations"]) == [
        "generated clips 3 instead of 256", "real clips 3 instead of 256", "trajectories 2 instead of 10"]
    assert found["fvd"]["conditions"]["resize"] == "bilinear_half_pixel"
    assert len(found["fvd"]["details"]["trajectories"]) == 2 and found["fvd"]["value"] > 0
    assert found["mcvd_mse"]["conditions"]["frames"] == 10 and found["mcvd_mse"]["conditions"]["best_of"] == 2
    assert found["mcvd_mse"]["value"] <= found["mcvd_mse"]["details"]["one video a clip"]
    assert found["mcvd_lpips"]["value"] > 0.01
    assert "| fvd (mcvd_smmnist), OFF PROTOCOL |" in capfd.readouterr().out
    # The given frames come out as they are, at the size of the last stage, and all of them grey.
    (kept,) = (predictor / "metrics").glob("*/videos/*.npz")
    with np.load(kept) as file:
        videos = file["values"]
    source = smmnist.StochasticMovingMNIST().open("test", predictor)
    for number in range(6):
        assert np.abs(videos[number, :5].astype(int) - source[number % 3]["video"][:5]).max() <= 1
    assert (videos == videos[..., :1]).all() and (videos[0] != videos[3]).any()


def test_what_is_given_is_not_overruled():
    def options(*arguments, **given):
        found = by_protocol(Evaluate(run="run", protocol="mcvd_smmnist", **given), arguments)
        return found.metrics, found.count, found.samples_per_clip, found.given_frames, found.split

    everything = ("fvd", "mcvd_mse", "mcvd_psnr", "mcvd_ssim", "mcvd_lpips")
    assert options() == (everything, 256, 10, 5, "test")
    assert options("--count", "96", "--samples-per-clip=1") == (everything, 96, 1, 5, "test")
    assert options(metrics=("fvd",)) == (("fvd",), 96, 1, 0, "test")
    assert by_protocol(Evaluate(run="run", protocol="vdm_bair"), ()).metrics == ()
