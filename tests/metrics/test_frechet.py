"""Distances of features against SciPy, quadratic sums and closed forms."""

import numpy as np
import pytest
import scipy.linalg

from tests.refusals import refused
from vdm_jax.metrics.frechet import Moments, bootstrap, frechet_distance, kernel_distance


def draw(count, size, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size)) @ np.random.default_rng(9).standard_normal((size, size)) + shift


def textbook(one, other, ddof):
    a, b = (np.cov(x, rowvar=False, ddof=ddof) for x in (one, other))
    apart = one.mean(0) - other.mean(0)
    return apart @ apart + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


@pytest.mark.parametrize(("divisor", "ddof"), [("n-1", 1), ("n", 0)])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_the_frechet_distance_is_the_textbooks(size, divisor, ddof):
    one, other = draw(200, size), 1.3 * draw(150, size, seed=1, shift=0.5)
    if size == 1:
        expected = (one.mean() - other.mean()) ** 2 + (one.std(ddof=ddof) - other.std(ddof=ddof)) ** 2
    else:
        expected = textbook(one, other, ddof)
    assert frechet_distance(Moments.of(one), Moments.of(other), divisor) == pytest.approx(expected, rel=1e-9)


def test_covariances_without_full_rank_are_no_special_case():
    # Points on a plane: the distance within the plane is the distance in space, whatever directions are empty.
    one, other = draw(50, 3), draw(40, 3, seed=1, shift=1.0)
    frame, _ = np.linalg.qr(draw(80, 80, seed=2))
    within = frechet_distance(Moments.of(one), Moments.of(other))
    in_space = frechet_distance(*(Moments.of(x @ frame[:3]) for x in (one, other)))
    assert in_space == pytest.approx(within, rel=1e-9) and within == pytest.approx(textbook(one, other, 1), rel=1e-9)
    few = draw(10, 80)
    assert frechet_distance(Moments.of(few), Moments.of(few)) == pytest.approx(0, abs=1e-8 * np.trace(few.T @ few))
    points = [np.repeat([[1.0, 2.0]], 5, 0), np.repeat([[4.0, 6.0]], 3, 0)]
    assert frechet_distance(*map(Moments.of, points)) == pytest.approx(25)


def test_moments_of_parts_add_up_to_those_of_the_whole():
    features = draw(101, 6) + 1e6  # sums of squares would lose everything here
    parts = [Moments.of(part) for part in np.split(features, (1, 30, 77))]
    whole, merged = Moments.of(features), sum(parts[1:], parts[0])
    assert merged.count == 101
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.scatter, (101 - 1) * np.cov(features - 1e6, rowvar=False), rtol=1e-6)


def test_the_kernel_distance_is_the_quadratic_sum():
    one, other = draw(40, 5), draw(33, 5, seed=1, shift=0.3)
    kernel = lambda x, y: (x @ y / 5 + 1) ** 3
    within = [np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]) for x in (one, other)]
    across = np.mean([kernel(a, b) for a in one for b in other])
    for block in (7, 1024):
        assert kernel_distance(one, other, block=block) == pytest.approx(sum(within) - 2 * across, rel=1e-9)
    values = [kernel_distance(draw(20, 5, seed=2 * i), draw(20, 5, seed=2 * i + 1)) for i in range(200)]
    assert min(values) < 0 and abs(np.mean(values)) < 3 * np.std(values) / 200**0.5  # no bias


def test_the_interval_is_as_wide_as_scores_of_other_draws():
    distance = lambda a, b: frechet_distance(Moments.of(a), Moments.of(b))
    scores = [distance(draw(100, 4, seed=2 * i), draw(100, 4, seed=2 * i + 1, shift=1.0)) for i in range(150)]
    widths = []
    for seed in range(8):
        real, generated = draw(100, 4, seed=seed), draw(100, 4, seed=seed + 500, shift=1.0)
        interval = bootstrap(distance, real, generated, seed=seed)
        assert (interval.low + interval.high) / 2 == pytest.approx(distance(real, generated))
        widths.append(interval.high - interval.low)
    assert np.mean(widths) / (2 * 1.96 * np.std(scores)) == pytest.approx(1, abs=0.3)
    assert bootstrap(distance, real, generated, seed=7) == interval  # same seed, same interval


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Moments.of(np.zeros(3)), ("frechet.checked", "[3]", "[N, D]")),
    (lambda: Moments.of(np.array([[1.0], [np.nan]])), ("frechet.checked", "video 1")),
    (lambda: Moments.of(np.ones((1, 2))).covariance(), ("frechet.Moments.covariance", "1 vectors")),
    (lambda: Moments.of(draw(5, 2)).covariance("n+1"), ("divisor", "='n+1'", "'n-1', 'n'")),
    (lambda: Moments.of(draw(5, 2)) + Moments.of(draw(5, 3)), ("frechet.Moments.__add__", "2 and 3")),
    (lambda: frechet_distance(Moments.of(draw(5, 2)), Moments.of(draw(5, 3))), ("frechet.frechet_distance", "2 and 3")),
    (lambda: kernel_distance(draw(5, 2), draw(1, 2)), ("frechet.kernel_distance", "[5, 2]", "[1, 2]")),
    (lambda: bootstrap(lambda a, b: 0.0, draw(5, 2), draw(5, 2), resamples=1), ("resamples", "=1")),
])
def test_bad_input_is_refused(call, message):
    with refused(*message):
        call()
