"""The metrics of a run: what is compared with what, what is kept, what is refused."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import CaptionedDigitsSource
from vdm_jax.evaluation import run_metrics
from vdm_jax.evaluation.run_metrics import evaluate_run
from vdm_jax.evaluation.settings import MetricSettings
from vdm_jax.metrics import features as features_of
from vdm_jax.metrics.detectors import i3d, weights
from vdm_jax.metrics.frechet import Moments, frechet_distance
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

DATA = CaptionedDigits(size=32, frames=8, test_clips=12)


class Cascade:
    """Stands for a trained cascade: answers with noise, or with the real clips where it is given their first frames."""

    def __init__(self, frames=4):
        stage = Stage(name="base", video=VideoSpec(frames=frames, height=32, width=32), process=Process(),
                      network=UNet(levels=(Level(channels=4),)))
        self.experiment = Experiment(name="tiny", stages=(stage,), data=DATA)
        self.params = {"base": {"kernel": jnp.ones(3)}}
        self.asked, self.fails_at = [], None
        self.frames = frames

    def __call__(self, captions, *, seed, first_index, masked_video=None, **rest):
        self.asked.append((first_index, len(captions)))
        if first_index == self.fails_at:
            raise KeyboardInterrupt
        numbers = first_index + np.arange(len(captions))
        if masked_video is None:
            draw = [np.random.default_rng([seed, i]).integers(0, 256, (self.frames, 32, 32, 3)) for i in numbers]
            return SimpleNamespace(videos=np.stack(draw).astype(np.uint8))
        assert np.all(masked_video.mask[:, :2] == 1) and np.all(masked_video.mask[:, 2:] == 0)
        source = CaptionedDigitsSource(DATA, "test")
        videos = np.stack([source[i % 5]["video"][::2] for i in numbers])
        np.testing.assert_array_equal(np.asarray((masked_video.video[:, :2] + 1) * 127.5).round(), videos[:, :2])
        videos[:, :2] ^= 255  # given frames are not measured
        videos[:, 3] ^= 1
        return SimpleNamespace(videos=videos)


@pytest.fixture
def source():
    return CaptionedDigitsSource(DATA, "test")


@pytest.fixture
def features(monkeypatch):
    """Three numbers in the place of I3D's features, and its weights as if they were here."""
    monkeypatch.setattr(features_of, "i3d_features", lambda clips, resize: np.asarray(clips, float).mean((1, 2, 3)))
    monkeypatch.setattr(weights, "find", lambda file: None)
    monkeypatch.setattr(i3d, "LEAST_FRAMES", 4)


def test_paired_metrics_are_of_the_frames_that_were_not_given(source, tmp_path):
    settings = MetricSettings(metrics=("psnr", "ssim"), count=5, given_frames=2, samples_per_clip=2, part=4)
    found = evaluate_run(Cascade(), source, settings, tmp_path)
    psnr, ssim = found.scores
    assert found.real == () and 70 < psnr.value < 80  # frame 2 is exact
    assert 0.9 < ssim.value < 1 and ssim.conditions["frames"] == 2 and ssim.conditions["videos"] == 10
    assert ssim.conditions["stride"] == 2 and "| psnr | 7" in found.table()


def test_what_was_made_is_kept_and_a_second_call_goes_on(source, tmp_path, features):
    settings = MetricSettings(metrics=("fvd",), count=8, part=3, resamples=0)
    cascade = Cascade()
    cascade.fails_at = 3
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(cascade, source, settings, tmp_path)
    cascade.fails_at, seen = None, []
    first = evaluate_run(cascade, source, settings, tmp_path, progress=lambda *what: seen.append(what))
    assert cascade.asked == [(0, 3), (3, 3), (3, 3), (6, 2)]
    assert seen == [("generated videos", n, 8) for n in (3, 6, 8)] + [("real videos", n, 8) for n in (3, 6, 8)]
    # Another metric of the same videos, then more videos: nothing is sampled twice but the part that was not full.
    again = evaluate_run(cascade, source, dataclasses.replace(settings, metrics=("kvd", "fvd")), tmp_path)
    assert len(cascade.asked) == 4 and again.scores[1] == first.scores[0]
    evaluate_run(cascade, source, dataclasses.replace(settings, count=9), tmp_path)
    assert cascade.asked[4:] == [(6, 3)]
    # Other videos are kept elsewhere.
    evaluate_run(cascade, source, dataclasses.replace(settings, seed=1), tmp_path)
    assert len(cascade.asked) == 8 and len(list(tmp_path.iterdir())) == 3


def test_runs_on_the_same_data_share_what_was_measured_of_it(source, tmp_path, features, monkeypatch):
    settings = MetricSettings(metrics=("fvd",), count=6, resamples=0)
    evaluate_run(Cascade(), source, settings, tmp_path / "one", real_folder=tmp_path / "real")
    measured = []
    monkeypatch.setattr(features_of, "i3d_features",
                        lambda clips, resize: measured.append(len(clips)) or np.asarray(clips, float).mean((1, 2, 3)))
    evaluate_run(Cascade(), source, settings, tmp_path / "two", real_folder=tmp_path / "real")
    assert measured == [6] and len(list((tmp_path / "real").iterdir())) == 1  # the generated ones alone
    class Changed(CaptionedDigitsSource):  # the same config, other files
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return item | {"video": 255 - item["video"]}

    evaluate_run(Cascade(), Changed(DATA, "test"), settings, tmp_path / "two", real_folder=tmp_path / "real")
    assert measured == [6, 6, 6] and len(list((tmp_path / "real").iterdir())) == 2


def test_distances_carry_their_protocol(source, tmp_path, features):
    settings = MetricSettings(metrics=("fvd", "kvd"), count=6, protocol="fvd2048_16f", resamples=5)
    found = evaluate_run(Cascade(), source, settings, tmp_path).to_dict()
    score, kernel = found["scores"]
    assert score["label"] == "fvd (fvd2048_16f), OFF PROTOCOL" and score["interval"]["resamples"] == 5
    assert kernel["label"] == "kvd (fvd2048_16f), OFF PROTOCOL"
    assert set(score["deviations"]) == {
        "frames 4 instead of 16", "stride 2 instead of 1", "real clips 6 instead of 2048",
        "generated clips 6 instead of 2048", "split test instead of train",
        "start as the data set gives it instead of random"}
    assert found["settings"]["seed"] == 0 and found["settings"]["weights"] == {"base": "1.7320508"}


def test_clips_start_at_random_where_the_protocol_wants_it_and_the_data_can(source, tmp_path, features):
    class Movable(CaptionedDigitsSource):
        def clip(self, index, rng):
            return self[int(rng.integers(len(self)))]

    settings = MetricSettings(metrics=("fvd",), count=6, protocol="fvd2048_16f", resamples=0)
    (fixed,), (random,) = (evaluate_run(Cascade(), kind(DATA, "test"), settings, tmp_path).scores
                           for kind in (CaptionedDigitsSource, Movable))
    assert random.conditions["start"] == "random" and not any("start" in text for text in random.deviations)
    assert random.value != fixed.value
    as_given = dataclasses.replace(settings, protocol="original")
    (score,) = evaluate_run(Cascade(), Movable(DATA, "test"), as_given, tmp_path).scores
    assert score.conditions["start"] == "as the data set gives it" and score.label == "fvd (original)"


def test_unpaired_metrics_stand_beside_those_of_real_clips(source, tmp_path):
    pytest.importorskip("cv2", reason="optical flow needs the extra [metrics]")
    found = evaluate_run(Cascade(), source, MetricSettings(metrics=("motion", "warp_error"), count=3), tmp_path)
    assert [score.metric for score in found.real] == ["motion", "warp_error"]
    assert found.scores[1].value > 2 * found.real[1].value  # noise is no motion
    assert found.table().index("Generated videos") < found.table().index("Real clips")


def test_a_damaged_part_is_named(source, tmp_path):
    settings = MetricSettings(metrics=("psnr",), count=5, given_frames=2)
    evaluate_run(Cascade(), source, settings, tmp_path)
    (path,) = tmp_path.glob("*/psnr/*.npz")
    path.write_bytes(path.read_bytes()[:50])
    with refused("run_metrics._kept", "000000-000004.npz"):
        evaluate_run(Cascade(), source, settings, tmp_path)


def test_videos_that_a_metric_cannot_see_are_not_generated(source, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "find", lambda file: None)
    cascade = Cascade()
    with refused("feature_scores.require_sight", "4", "9"):
        evaluate_run(cascade, source, MetricSettings(metrics=("fvd",), count=2), tmp_path)
    with refused("run_metrics.require_visible", "30x64", "31"):
        run_metrics.require_visible(("ssim", "lpips"), (4, 30, 64))
    assert cascade.asked == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"metrics": ("psnr",)}, ("MetricSettings.given_frames", "=0")),
    ({"metrics": ("fib",)}, ("MetricSettings.metrics",)),
    ({"metrics": ()}, ("MetricSettings.metrics", "=()")),
    ({"count": 1}, ("MetricSettings.count", "=1", ">= 2")),
    ({"resamples": 1}, ("MetricSettings.resamples", "=1")),
    ({"protocol": "mine"}, ("MetricSettings.protocol", "='mine'")),
    ({"count": 13}, ("count", "=13", "12", "'test'")),
    ({"metrics": ("psnr",), "given_frames": 4}, ("given_frames", "=4", "'base'")),
])
def test_bad_settings_are_refused(changes, message, source, tmp_path, features):
    with refused(*message):
        evaluate_run(Cascade(), source, MetricSettings(**{"metrics": ("fvd",), "count": 2} | changes), tmp_path)


def test_a_missing_detector_is_told_before_anything_is_generated(source, tmp_path, monkeypatch):
    gone = dataclasses.replace(weights.I3D, path="no_such_package/file.ckpt")
    monkeypatch.setattr(weights, "I3D", gone)
    cascade = Cascade()
    with refused("weights.find", "i3d_kinetics400", "file.ckpt"):
        evaluate_run(cascade, source, MetricSettings(metrics=("fvd",), count=2), tmp_path)
    assert cascade.asked == []


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    settings = MetricSettings(metrics=("psnr",), count=2, given_frames=2)
    with refused("run_metrics._kept", "000000-000001.npz", "--out", "--data-dir"):
        run_metrics._kept(tmp_path / "file" / "psnr" / "000000-000001.npz", lambda: np.ones(2))
    assert evaluate_run(Cascade(), source, settings, tmp_path).scores


def test_a_protocol_of_trajectories_compares_them_one_by_one(source, tmp_path, features):
    """Four videos of each of three clips, in parts that hold videos of two trajectories."""
    settings = MetricSettings(metrics=("fvd", "mcvd_psnr"), count=3, samples_per_clip=4, given_frames=2, part=2,
                              protocol="mcvd_smmnist", resamples=0)

    class Noisy(Cascade):
        """Answers with the given frames and noise, whose channels differ."""

        def __call__(self, captions, *, seed, first_index, masked_video, **rest):
            videos = Cascade.__call__(self, captions, seed=seed, first_index=first_index).videos
            videos[:, :2] = ((masked_video.video[:, :2] + 1) * 127.5).round()
            return SimpleNamespace(videos=videos)

    found = evaluate_run(Noisy(), source, settings, tmp_path)
    score, psnr = found.scores
    real = np.stack([source[i]["video"][::2] for i in range(3)])
    noise = [np.random.default_rng([0, i]).integers(0, 256, (4, 32, 32, 3)) for i in range(12)]
    videos = np.stack(noise).reshape(4, 3, 4, 32, 32, 3).astype(np.uint8)
    videos[:, :, :2] = real[:, :2]
    videos = np.round(videos.mean(-1, keepdims=True)).repeat(3, -1)  # grey

    def expected(k):
        return frechet_distance(*(Moments.of(x.mean((1, 2, 3))) for x in (real, videos[k])))

    np.testing.assert_allclose(score.details["trajectories"], [expected(k) for k in range(4)], rtol=1e-5)
    assert score.value == pytest.approx(np.mean(score.details["trajectories"]))
    assert {"real clips 3 instead of 256", "generated clips 3 instead of 256", "trajectories 4 instead of 10",
            "data set CaptionedDigits instead of StochasticMovingMNIST"} <= set(score.deviations)
    errors = ((videos[:, :, 2:] - real[:, 2:].astype(float)) ** 2).mean((2, 3, 4, 5)) / 255**2
    assert psnr.value == pytest.approx((-10 * np.log10(errors)).max(0).mean(), rel=1e-6)
    assert psnr.details["one video a clip"] == pytest.approx((-10 * np.log10(errors))[0].mean(), rel=1e-6)
    assert psnr.conditions["best_of"] == 4 and psnr.conditions["videos"] == 3 and psnr.conditions["frames"] == 2
