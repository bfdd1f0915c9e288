"""Frame metrics of video prediction: what is averaged, what is rounded, and which of several predictions counts."""

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics import frames
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.measures import MEASURES
from vdm_jax.metrics.prediction import enlarged_lpips, rounded_ssim, video_mse, video_psnr


def drawn(seed, count=2):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 16, 16, 3)).astype(np.uint8)


def test_errors_are_of_the_whole_video():
    real = drawn(0)
    videos = real.copy()
    videos[1, 2] = 255 - real[1, 2]
    error = ((videos[1] / 255 - real[1] / 255) ** 2).mean()
    np.testing.assert_allclose(video_mse(videos, real), [0, error], rtol=1e-12)
    np.testing.assert_allclose(video_psnr(videos, real), [100, -10 * np.log10(error)], rtol=1e-12)
    # Two exact frames do not raise it, as they do the mean over frames.
    assert video_psnr(videos, real)[1] < 20 < frames.psnr(videos, real)[1]


def test_ssim_is_of_black_and_white():
    real = np.where(drawn(1) > 127, np.uint8(255), np.uint8(0))
    grey = np.where(real > 0, np.uint8(128), np.uint8(127))  # rounds to the same
    np.testing.assert_allclose(rounded_ssim(grey, real), 1)
    assert (frames.ssim(grey, real) < 0.5).all()
    other = drawn(2)
    rounded = (np.round(other / 255) * 255).astype(np.uint8)
    np.testing.assert_allclose(rounded_ssim(other, real), frames.ssim(rounded, real))
    with refused("frames.ssim", "8x8"):
        rounded_ssim(real[:, :, :8, :8], real[:, :, :8, :8])


@pytest.mark.full
def test_lpips_sees_enlarged_frames(trained):
    trained(weights.ALEXNET)
    real = drawn(3, 1)[:, :1]
    flat = np.full_like(real, 90)
    large = [np.full((1, 1, 128, 128, 3), 90, np.uint8)]
    assert enlarged_lpips(flat, flat) == pytest.approx(frames.lpips(*large * 2), abs=1e-6)
    assert enlarged_lpips(real, flat)[0] > 0.1


def test_the_best_of_several_predictions_counts_each_metric_its_own():
    values = np.array([[1.0, 5.0, 3.0], [2.0, 4.0, 1.0]])  # two predictions of three clips
    low, high = (frames.best_score("x", values, better, {"size": "8x8"}) for better in ("lower", "higher"))
    assert (low.value, high.value) == (pytest.approx(2.0), pytest.approx(10 / 3))
    assert low.conditions == {"videos": 3, "best_of": 2, "size": "8x8"}
    assert low.details == {"one video a clip": 3.0}
    names = [name for name, measure in MEASURES.items() if measure.best]
    assert names == ["mcvd_mse", "mcvd_psnr", "mcvd_ssim", "mcvd_lpips"]
    assert [MEASURES[name].better for name in names] == ["lower", "higher", "higher", "lower"]


def test_grey_frames_are_looked_at_once_with_the_same_result():
    structural = pytest.importorskip("skimage.metrics").structural_similarity
    grey, other = (drawn(seed)[..., :1].repeat(3, -1) for seed in (4, 5))
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [np.mean([structural(a, b, channel_axis=-1, **options) for a, b in zip(x, y, strict=True)])
                for x, y in zip(grey.astype(float), other.astype(float), strict=True)]
    np.testing.assert_allclose(frames.ssim(grey, other), expected, rtol=1e-9)
