"""Statistics of parts add up to those of the whole, and take constant memory."""

import functools
import operator

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics.frechet import Moments, frechet_distance, frechet_interval
from vdm_jax.metrics.statistics import KEPT, Statistics


def drawn(count, size=6, vectors=1, seed=0):
    return np.random.default_rng(seed).standard_normal((count, vectors, size)).astype(np.float32) + 3


def of_parts(features, bounds, limit, order=None):
    parts = [Statistics.of(part, numbers, limit) for part, numbers in
             zip(np.split(features, bounds), np.split(np.arange(len(features)), bounds), strict=True)]
    return functools.reduce(operator.add, [parts[i] for i in order or range(len(parts))])


@pytest.mark.parametrize("limit", [1000, 40])
def test_parts_add_up_in_any_order(limit):
    features = drawn(200, vectors=3)
    whole = Statistics.of(features, np.arange(200), limit)
    for bounds, order in (((50, 60, 190), None), ((7,), (1, 0)), (range(10, 200, 10), tuple(range(19, -1, -1)))):
        found = of_parts(features, bounds, limit, order)
        assert found.videos == 200 and found.moments.count == 600 and found.whole == (limit == 1000)
        np.testing.assert_array_equal(found.numbers, whole.numbers)
        np.testing.assert_array_equal(found.kept, whole.kept)
        np.testing.assert_allclose(found.moments.mean, whole.moments.mean, rtol=1e-12)
        np.testing.assert_allclose(found.moments.scatter, whole.moments.scatter, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.moments.covariance(), np.cov(features.reshape(-1, 6).astype(float), rowvar=False))


def test_memory_does_not_grow_with_the_number_of_videos():
    total = None
    for start in range(0, 50_000, 500):
        part = Statistics.of(drawn(500, 4, seed=start), np.arange(start, start + 500), 256)
        total = part if total is None else total + part
        assert total.kept.nbytes == 256 * 4 * 4 and total.moments.scatter.shape == (4, 4)
    assert total.videos == total.moments.count == 50_000 and not total.whole
    assert abs(total.numbers.mean() / 25_000 - 1) < 0.1  # drawn evenly from all of them
    np.testing.assert_allclose(total.kept.mean(0), total.moments.mean[None], atol=0.2)
    assert Statistics.of(drawn(3, vectors=16), [0, 1, 2]).limit == KEPT // 16


def test_a_draw_has_the_interval_of_all():
    real, made = drawn(4000, 4)[:, 0], drawn(4000, 4, seed=1)[:, 0] + 0.1
    value = frechet_distance(Moments.of(real), Moments.of(made))
    whole = frechet_interval([real[:, None]], [made[:, None]], value)
    draw = frechet_interval([real[:400, None]], [made[:400, None]], value, videos=(4000, 4000))
    widths = [interval.high - interval.low for interval in (whole, draw)]
    assert widths[1] / widths[0] == pytest.approx(1, abs=0.35)
    assert whole.low < value < whole.high and whole.resamples == 100
    # Places that say the same are no further evidence.
    again = frechet_interval([real[:, None]] * 2, [made[:, None]] * 2, value)
    assert again.low == pytest.approx(whole.low)


def test_moments_of_repeated_vectors():
    features, counts = drawn(7, 3)[:, 0], np.array([1, 2, 0, 3, 1, 1, 4])
    direct, weighted = Moments.of(features.repeat(counts, 0)), Moments.weighted(features, counts)
    assert weighted.count == 12
    np.testing.assert_allclose(weighted.scatter, direct.scatter, rtol=1e-6)
    assert frechet_distance(direct, weighted) == pytest.approx(0, abs=1e-5)


def test_what_does_not_fit_is_refused():
    one = Statistics.of(drawn(4), np.arange(4))
    with refused("statistics.videos"):
        one + Statistics.of(drawn(4), np.arange(3, 7))
    with refused("statistics.Statistics.__add__"):
        one + Statistics.of(drawn(4, vectors=2), np.arange(4, 8))
    with refused("statistics.Statistics.of"):
        Statistics.of(drawn(4), np.zeros(4))
    with refused("frechet.checked", "2"):
        Statistics.of(np.array([[1.0], [2], [np.nan]]), np.arange(3))
