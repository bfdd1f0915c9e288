"""Inputs at which a metric has no variance, no direction or no peak: a value that is defined, NaN that is counted, or
one line that says what is wrong. Never infinity or NaN in a score."""

import importlib.util
import re
import warnings

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.errors import NotFinite
from vdm_jax.evaluation.levels import best_level
from vdm_jax.evaluation.reconstruction import latent_moments
from vdm_jax.metrics import flow, frames
from vdm_jax.metrics.av_align import av_align, matched
from vdm_jax.metrics.frechet import Interval, Moments, bootstrap, frechet_distance, frechet_interval, kernel_distance
from vdm_jax.metrics.inception_score import ClassTotals, score_interval, softmax, split_of
from vdm_jax.metrics.onsets import RATE, onsets

NORMAL = np.random.default_rng(0).normal(size=(6, 4))
CONSTANT, ZERO = np.full((6, 4), 3.0), np.zeros((6, 4))
BLACK, WHITE = (np.full((2, 3, 32, 32, 3), value, np.uint8) for value in (0, 255))
SILENCE, ONE_CLASS, EVEN = np.zeros(RATE), np.eye(3)[[1] * 6], np.full((6, 3), 1 / 3)


@pytest.fixture(autouse=True)
def no_warnings():
    """NumPy warns of what becomes NaN or infinity."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def frechet(one, other):
    return frechet_distance(Moments.of(one), Moments.of(other))


def inception(probabilities, splits):
    numbers = np.arange(len(probabilities))
    return ClassTotals.of(probabilities, split_of(numbers, len(numbers), splits), splits).scores()


@pytest.mark.parametrize(("call", "value"), [
    (lambda: frechet(CONSTANT, CONSTANT), 0), (lambda: frechet(ZERO, ZERO), 0),
    (lambda: frechet(NORMAL, NORMAL), 0),  # and not a little below
    (lambda: frechet(CONSTANT, ZERO), 4 * 3.0**2),  # two points
    (lambda: frechet(CONSTANT, NORMAL), ((NORMAL.mean(0) - 3) ** 2).sum() + NORMAL.var(0, ddof=1).sum()),
    (lambda: kernel_distance(CONSTANT, CONSTANT), 0), (lambda: kernel_distance(ZERO, ZERO), 0),
    (lambda: kernel_distance(CONSTANT, ZERO), 10.0**3 + 1 - 2),  # (x.y / D + 1)^3
    (lambda: bootstrap(kernel_distance, ZERO, ZERO, resamples=3).high, 0),
    (lambda: frechet_interval([ZERO[:, None]], [ZERO[:, None]], 0.0, resamples=3).high, 0),
    (lambda: inception(ONE_CLASS, 1), 1), (lambda: inception(EVEN, 1), 1), (lambda: inception(EVEN, 6), [1] * 6),
    (lambda: inception(np.ones((6, 1)), 2), [1, 1]),  # of a classifier of one class
    (lambda: inception(np.eye(3), 1), 3),  # as many as there are classes
    (lambda: score_interval(ONE_CLASS[:, None], 6, 2, 1.0, resamples=3).low, 1),
    (lambda: softmax(np.array([1e5, 0.0, -1e5])), [1, 0, 0]),
    (lambda: frames.psnr(BLACK, BLACK), [frames.HIGHEST_PSNR] * 2), (lambda: frames.psnr(BLACK, WHITE), [0, 0]),
    (lambda: frames.ssim(BLACK, BLACK), [1, 1]),
    (lambda: frames.ssim(WHITE, BLACK), [6.5025 / (255**2 + 6.5025)] * 2),  # C1 = (0.01 * 255)^2 alone
    (lambda: frames.ssim(WHITE, BLACK, "uniform"), [6.5025 / (255**2 + 6.5025)] * 2),
    (lambda: frames.consistency(1e-30 * np.ones((1, 3, 4))), [1]),
    (lambda: frames.consistency(1e200 * np.ones((1, 3, 4)), "all"), [1]),
    (lambda: frames.similarity(1e-30 * np.ones((1, 3, 4)), -1e200 * np.ones((1, 4))), [-1]),
    (lambda: onsets(SILENCE), []), (lambda: onsets(np.zeros(1)), []),
    (lambda: matched([], [1.0], 8), 0), (lambda: matched([1.0], [], 8), 0),
    (lambda: frames.mean_score("m", np.array([2.0]), "higher", {}).value, 2),
    (lambda: latent_moments("a", [(1.0, 5.0), (3.0, 11.0)]), (2, 2)),
])
def test_the_value_is_defined(call, value):
    np.testing.assert_allclose(call(), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("call", [
    lambda: frames.consistency(np.zeros((1, 3, 4))), lambda: frames.consistency(np.zeros((1, 3, 4)), "all"),
    lambda: frames.consistency(np.eye(3)[None] * [[1], [0], [1]]),  # one frame without a direction
    lambda: frames.similarity(np.zeros((1, 3, 4)), np.ones((1, 4))),
    lambda: frames.similarity(np.ones((1, 3, 4)), np.zeros((1, 4))), lambda: [matched([], [], 8)],
])
def test_a_video_without_a_value_is_counted(call):
    """A cosine with the zero vector, and the share of no peaks, are not defined."""
    assert np.isnan(call()).all()
    score = frames.mean_score("m", np.concatenate([call(), [0.5, 0.7]]), "higher", {})
    assert score.value == pytest.approx(0.6) and score.conditions["videos_without_value"] == 1


@pytest.mark.parametrize(("call", "message"), [
    (lambda: frechet(NORMAL[:1], NORMAL), ("frechet.Moments.covariance", "1", "2")),
    (lambda: frechet_interval([NORMAL[:1, None]], [NORMAL[:, None]], 0.0, resamples=3),
     ("frechet.Moments.covariance", "1")),
    (lambda: bootstrap(kernel_distance, NORMAL, NORMAL[:1], resamples=3), ("frechet.kernel_distance", "2")),
    (lambda: Moments.of(NORMAL * np.nan), ("frechet.checked", "0")),
    (lambda: inception(EVEN, 7), ("inception_score.ClassTotals.scores", "7", "6")),
    (lambda: inception(EVEN, 0), ("splits", "=0")),
    (lambda: inception(EVEN * np.nan, 1), ("inception_score.ClassTotals.of", "1")),
    (lambda: inception(np.array([[2.0, -1.0]]), 1), ("inception_score.ClassTotals.of", "0")),
    (lambda: frames.consistency(np.ones((1, 1, 4))), ("frames.consistency", "2")),
    (lambda: frames.consistency(np.full((1, 2, 4), np.inf)), ("frames._unit", "NaN")),
    (lambda: frames.similarity(np.ones((1, 3, 4)), np.full((1, 4), np.nan)), ("frames._unit", "NaN")),
    (lambda: frames.similarity(np.ones((1, 0, 4)), np.ones((1, 4))), ("frames.similarity",)),
    (lambda: matched([1.0], [1.0], 0), ("fps", "=0")),
    (lambda: matched([1.0], [1.0], float("nan")), ("fps", "=nan")),
    (lambda: av_align(SILENCE, BLACK[0], float("inf")), ("fps", "=inf")),
    (lambda: av_align(SILENCE, BLACK[0, :2], 8), ("av_align.motion_peaks", "3")),
    (lambda: av_align(SILENCE, BLACK[0] / 255, 8), ("av_align.motion_peaks",)),
    (lambda: onsets(np.full(100, 1e38)), ("onsets.onsets",)),
    (lambda: onsets(np.full(100, 1e300)), ("onsets.onsets",)),
])
def test_what_has_no_value_is_refused(call, message):
    if "av_align" in call.__code__.co_names and importlib.util.find_spec("cv2") is None:
        pytest.skip("needs OpenCV")
    with refused(*message):
        call()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: frechet(1e200 * NORMAL, NORMAL), "a covariance is NaN or infinite"),
    (lambda: frechet(1e200 * CONSTANT, ZERO), "a Frechet distance is NaN or infinite"),
    (lambda: kernel_distance(1e200 * NORMAL, NORMAL), "a kernel distance is NaN or infinite"),
    (lambda: bootstrap(kernel_distance, 1e30 * NORMAL, NORMAL, resamples=3), "a 95 % interval is -inf to inf"),
    (lambda: softmax(np.array([np.inf, 0.0])), "logits of a classifier"),
    (lambda: frames.mean_score("m", np.full(2, np.nan), "higher", {}), "not defined for 2 of them"),
    (lambda: frames.mean_score("m", np.array([np.inf, 1.0]), "higher", {}), "infinite for 1 of them"),
    (lambda: Interval(low=0.0, high=float("inf"), level=0.95, resamples=2), "a 95 % interval is 0.0 to inf"),
    (lambda: best_level({"levels": [{"logsnr": 2.0, "scores": {"m": np.nan}}]}, "m"), "m at log-SNR 2 is no finite"),
    (lambda: latent_moments("vae", [(2.0, 4.0)]), "stage 'vae': latents of mean 2 and mean square 4 have no finite"),
    (lambda: latent_moments("vae", [(np.nan, 4.0)]), "they are not finite, or the same for all clips"),
])
def test_results_that_are_not_finite_are_named(call, message):
    with pytest.raises(NotFinite, match=re.escape(message)):
        call()


@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs OpenCV")
def test_videos_that_do_not_move():
    np.testing.assert_array_equal(flow.motion(BLACK), 0)
    np.testing.assert_array_equal(flow.warp_error(WHITE), 0)
    assert np.isnan(av_align(SILENCE, BLACK[0], 8))
