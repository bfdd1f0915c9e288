"""FVD: the known distance of black and white, exact preprocessing, and scores that say how they were made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.refusals import refused
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import generate_clip
from vdm_jax.metrics import fvd as video_distance
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.fvd import FeatureSet, block_fvd, blocks, fvd, i3d_features, kvd, trajectory_fvd
from vdm_jax.metrics.fvd_protocols import PROTOCOLS, find_protocol
from vdm_jax.metrics.resizing import interpolation
from vdm_jax.metrics.scores import require_comparable, table

ORIGINAL = PROTOCOLS["original"]


def feature_set(features, **changes):
    made = {"data": "drawn", "split": "test", "frames": 16, "stride": 1, "size": "64x64", "resize": "bilinear_tf1"}
    return FeatureSet(features=features, **made | changes)


STYLEGAN_V = {"resize": "bilinear_half_pixel", "split": "train", "start": "random"}


def drawn(count, size=6, seed=0, shift=0.0, **changes):
    return feature_set(np.random.default_rng(seed).standard_normal((count, size)) + shift, **changes)


def textbook(one, other):
    """The distance by SciPy's matrix root."""
    a, b = (np.cov(x, rowvar=False) for x in (one, other))
    root = scipy.linalg.sqrtm(a @ b).real
    return ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)


def test_black_and_white_are_as_far_apart_as_published(trained):
    """16 clips of 15 frames of zeros and 16 of 255: about 131 by the original code, 134.24 by ports to PyTorch."""
    trained(weights.I3D)
    clips = [np.full((15, 64, 64, 3), level, np.uint8) for level in (0, 255)]
    black, white = (np.repeat(row[None], 16, 0) for row in i3d_features(clips, "bilinear_tf1", batch_size=2))
    score = fvd(feature_set(black, frames=15), feature_set(white, frames=15), ORIGINAL, resamples=0)
    assert 131 <= score.value <= 135 and score.value == pytest.approx(133.908, abs=0.01)
    direct = ((black.astype(np.float64).mean(0) - white.astype(np.float64).mean(0)) ** 2).sum()
    assert score.value == pytest.approx(direct, rel=1e-6)


@pytest.mark.full
def test_black_and_white_under_the_port_that_predictions_are_measured_with(trained):
    """8 clips of 30 frames of zeros and 8 of 255. JunyaoHu/common_metrics_on_video_quality prints 151.26 by the port to
    PyTorch and 151.39 with TensorFlow."""
    trained(weights.I3D)
    clips = [np.full((30, 64, 64, 3), level, np.uint8) for level in (0, 255)]
    made = {"frames": 30, "resize": "bilinear_half_pixel"}
    black, white = (feature_set(np.repeat(row[None], 8, 0), **made)
                    for row in i3d_features(clips, "bilinear_half_pixel", batch_size=2))
    score = fvd(black, white, PROTOCOLS["mcvd_smmnist"], resamples=0)
    assert score.value == pytest.approx(151.39, abs=0.02) and score.value == pytest.approx(151.26, abs=0.2)


def test_the_score_is_that_of_scipy_on_the_same_features():
    one, other = drawn(900, 100), drawn(800, 100, seed=1, shift=0.2)
    score = fvd(one, other, ORIGINAL, resamples=0)
    assert score.value == pytest.approx(textbook(one.features, other.features), rel=1e-9)


def test_resizing_is_that_of_the_two_published_codes():
    tf1, half = (interpolation(2, 4, name) for name in ("bilinear_tf1", "bilinear_half_pixel"))
    np.testing.assert_allclose(tf1, [[1, 0], [0.5, 0.5], [0, 1], [0, 1]])
    np.testing.assert_allclose(half, [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_allclose(interpolation(8, 4, "bilinear_tf1") @ np.arange(8), [0, 2, 4, 6])
    clips = np.random.default_rng(0).integers(0, 256, (1, 2, 48, 300, 3), np.uint8)
    expected = jax.image.resize(jnp.asarray(clips, jnp.float32), (1, 2, 224, 224, 3), "linear", antialias=False)
    np.testing.assert_allclose(video_distance.prepared(clips, "bilinear_half_pixel"), expected / 127.5 - 1, atol=1e-4)
    flat = video_distance.prepared(np.stack([np.zeros_like(clips[0]), np.full_like(clips[0], 255)]), "bilinear_tf1")
    np.testing.assert_allclose(flat[0], -1, atol=1e-6)
    np.testing.assert_allclose(flat[1], 1, atol=1e-6)
    with refused("resize", "='area'", "bilinear_tf1", "bilinear_half_pixel"):
        video_distance.prepared(clips, "area")


def test_protocols_have_their_published_values():
    values = {name: (p.frames, p.stride, p.real_clips, p.generated_clips, p.resize, p.divisor)
              for name, p in PROTOCOLS.items()}
    port = ("bilinear_half_pixel", "n")
    assert values["original"] == (None, None, None, None, "bilinear_tf1", "n-1")
    assert values["fvd2048_16f"] == (16, 1, 2048, 2048, *port)
    assert values["fvd2048_128f"] == (128, 1, 2048, 2048, *port)
    assert values["fvd2048_128f_subsample8f"] == (16, 8, 2048, 2048, *port)
    assert values["vdm_bair"][:4] == (16, 1, 256, 25_600)
    assert values["vdm_kinetics600"][:4] == (16, 1, 50_000, 50_000)
    with refused("protocol", "='fvd'"):
        find_protocol("fvd")


def test_a_score_off_its_protocol_says_so_wherever_it_is_shown():
    real, made = (drawn(40, seed=seed, **STYLEGAN_V) for seed in (0, 1))
    score = fvd(real, made, PROTOCOLS["fvd2048_16f"], resamples=5)
    assert score.label == "fvd (fvd2048_16f), OFF PROTOCOL" and score.label in str(score)
    assert score.deviations == ("real clips 40 instead of 2048", "generated clips 40 instead of 2048")
    text = table([score])
    for part in ("OFF PROTOCOL", "generated clips 40 instead of 2048", "resize bilinear_half_pixel", "split train",
                 "stride 1", "frames 16", weights.I3D.sha256, "covariance n"):
        assert part in text
    whole = [drawn(2048, seed=seed, **STYLEGAN_V) for seed in (0, 1)]
    assert fvd(*whole, PROTOCOLS["fvd2048_16f"], resamples=0).label == "fvd (fvd2048_16f)"
    assert score.to_dict()["interval"]["low"] < score.value < score.to_dict()["interval"]["high"]


def test_scores_made_differently_are_not_compared():
    real = drawn(50)
    near, far = (fvd(real, drawn(30, seed=1, shift=shift), ORIGINAL, resamples=0) for shift in (0.1, 1.0))
    require_comparable(near, far)
    assert near.value < far.value
    apart = {
        "metric": kvd(real, drawn(30, seed=1), ORIGINAL, resamples=0),
        "generated_clips": fvd(real, drawn(31, seed=1), ORIGINAL, resamples=0),
        "real_data": fvd(drawn(50, data="other"), drawn(30, seed=1), ORIGINAL, resamples=0),
        "split": fvd(drawn(50, split="train"), drawn(30, seed=1), ORIGINAL, resamples=0),
        "start": fvd(drawn(50, start="random"), drawn(30, seed=1), ORIGINAL, resamples=0),
        "stride": fvd(drawn(50, stride=2), drawn(30, seed=1), ORIGINAL, resamples=0),
        "protocol": fvd(real, drawn(30, seed=1), PROTOCOLS["vdm_bair"], resamples=0),
        "detector_sha256": dataclasses.replace(near, detector_sha256="0"),
    }
    for name, other in apart.items():
        with refused("scores._not_comparable", f" {name} is"):
            require_comparable(near, other)


def test_features_made_differently_give_no_score():
    real = drawn(20)
    for name, other in {"frames": drawn(20, frames=8), "resize": drawn(20, resize="bilinear_half_pixel"),
                        "detector_sha256": drawn(20, detector_sha256="0")}.items():
        with refused("fvd._require_alike", f" {name} of"):
            fvd(real, other, ORIGINAL)
    with refused("fvd._require_alike", "'fvd2048_16f'", "'bilinear_half_pixel'"):
        fvd(real, real, PROTOCOLS["fvd2048_16f"])


def test_statistics_of_real_clips_are_kept(tmp_path):
    real = feature_set(np.float32(np.random.default_rng(0).standard_normal((5, 400))), data="digits")
    real.save(tmp_path / "real.safetensors")
    found = FeatureSet.load(tmp_path / "real.safetensors")
    np.testing.assert_array_equal(found.features, real.features)
    assert dataclasses.replace(found, features=real.features) == real
    from vdm_jax.weights.safetensors import save_params

    save_params(tmp_path / "other.safetensors", {"features": real.features})
    with refused("fvd.FeatureSet.load", "FeatureSet.save"):
        FeatureSet.load(tmp_path / "other.safetensors")


def test_trajectories_are_compared_one_by_one():
    protocol = PROTOCOLS["mcvd_smmnist"]
    made = {"frames": 15, "resize": "bilinear_half_pixel", "data": "StochasticMovingMNIST 1f", "given_frames": 5}
    real = drawn(256, **made)
    generated = [drawn(256, seed=1 + k, shift=0.1 * k, **made) for k in range(10)]
    score = trajectory_fvd(real, generated, protocol)
    each = [textbook(real.features, one.features) for one in generated]
    assert score.value == pytest.approx(np.mean(each), rel=1e-6) and score.deviations == ()
    np.testing.assert_allclose(score.details["trajectories"], each, rtol=1e-6)
    everything = np.concatenate([one.features for one in generated])
    assert score.details["all together"] == pytest.approx(textbook(real.features, everything), rel=1e-6)
    margin = 1.96 * np.std(each, ddof=1) / 10**0.5
    assert score.interval.high - score.value == pytest.approx(margin, rel=1e-6)
    assert score.conditions["trajectories"] == 10 and score.conditions["generated_clips"] == 256
    few = trajectory_fvd(real, generated[:1], protocol, resamples=3)
    assert few.deviations == ("trajectories 1 instead of 10",) and few.interval.resamples == 3
    assert "all together" not in few.details
    other = trajectory_fvd(*(dataclasses.replace(real, data="MovingMNIST 2b"), generated[:2]), protocol)
    assert "data set MovingMNIST instead of StochasticMovingMNIST" in other.deviations


def test_block_fvd_is_the_mean_over_blocks():
    videos = np.arange(2 * 7).reshape(2, 7, 1, 1, 1)
    assert [block[0, :, 0, 0, 0].tolist() for block in blocks(videos, 3)] == [[0, 1, 2], [3, 4, 5]]
    with refused("frames"):
        blocks(videos, 8)
    real, made = [drawn(20, seed=s) for s in (0, 1)], [drawn(20, seed=s, shift=s) for s in (2, 3)]
    score = block_fvd(real, made, ORIGINAL)
    each = [fvd(*pair, ORIGINAL, resamples=0).value for pair in zip(real, made, strict=True)]
    assert score.metric == "b-fvd-16" and score.value == pytest.approx(np.mean(each))
    against_one = block_fvd(real[:1], made, ORIGINAL)
    assert against_one.value == pytest.approx(np.mean([fvd(real[0], m, ORIGINAL, resamples=0).value for m in made]))
    with refused("scores._not_comparable", "'same block'", "'one set'"):
        require_comparable(score, against_one)
    with refused("fvd.block_fvd", "2", "3"):
        block_fvd(real, [*made, made[0]], ORIGINAL)


@pytest.mark.parametrize(("clips", "message"), [
    ([], ("extraction.Extractor.__call__",)),
    ([np.zeros((8, 4, 4, 3), np.uint8)], ("fvd._checked", "[T, H, W, 3]", "9")),
    ([np.zeros((9, 4, 4, 3), np.float32)], ("fvd._checked", "[9, 4, 4, 3]")),
    ([np.zeros((9, 4, 4, 3), np.uint8), np.zeros((9, 4, 5, 3), np.uint8)], ("extraction.Extractor.__call__",)),
])
def test_clips_that_i3d_cannot_see_are_refused(clips, message, monkeypatch):
    monkeypatch.setattr(video_distance.i3d, "parameters", dict)
    video_distance._extractor.cache_clear()
    with refused(*message):
        i3d_features(clips, "bilinear_tf1")


@pytest.mark.full
def test_noise_is_heard_and_another_draw_is_not(trained):
    """Real clips: digits. Also, that no clip is dropped or changed by the batch it is in."""
    trained(weights.I3D)
    spec, rng = CaptionedDigits(), np.random.default_rng(0)
    clips = [generate_clip(spec, "test", index).video for index in range(12)]
    noisy = [np.clip(clip + rng.normal(0, 51, clip.shape), 0, 255).astype(np.uint8) for clip in clips[:6]]
    features = i3d_features([*clips, *noisy, clips[0]], "bilinear_half_pixel", batch_size=4)
    assert len(features) == 19
    np.testing.assert_allclose(features[0], features[18], atol=1e-4)
    real, draw, noise = (feature_set(features[i : i + 6], resize="bilinear_half_pixel") for i in (0, 6, 12))
    protocol = PROTOCOLS["fvd2048_16f"]
    floor, high = (fvd(real, other, protocol, resamples=20) for other in (draw, noise))
    assert floor.value < high.value
    # By the eigenvalues of the product; six clips have five directions.
    eigenvalues = np.linalg.eigvals(np.cov(real.features.T, ddof=0) @ np.cov(draw.features.T, ddof=0))
    a, b = (part.features.astype(np.float64) for part in (real, draw))
    direct = ((a.mean(0) - b.mean(0)) ** 2).sum() + a.var(0).sum() + b.var(0).sum()
    direct -= 2 * np.sqrt(np.sort(np.abs(eigenvalues))[-5:]).sum()
    assert floor.value == pytest.approx(direct, rel=1e-6)


@pytest.mark.full
def test_torch_resizes_alike():
    torch = pytest.importorskip("torch", reason="compares with PyTorch (requirements/peers.txt)")
    clips = np.random.default_rng(0).integers(0, 256, (1, 2, 300, 48, 3), np.uint8)
    frames = torch.tensor(clips[0].astype(np.float32)).permute(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
    ours = video_distance.prepared(clips, "bilinear_half_pixel")[0]
    np.testing.assert_allclose(ours, large.permute(0, 2, 3, 1).numpy() / 127.5 - 1, atol=1e-4)
