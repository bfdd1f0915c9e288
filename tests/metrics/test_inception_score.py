"""The Inception score against a direct computation, and the same from parts."""

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.metrics.inception_score import ClassTotals, score_interval, softmax, split_of


def probabilities(count, classes=7, seed=0):
    return softmax(2 * np.random.default_rng(seed).standard_normal((count, classes)))


def direct(p, splits):
    """As published: split by split, exp of the mean divergence."""
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return np.array(scores)


@pytest.mark.parametrize(("count", "splits"), [(100, 1), (103, 10), (50, 7)])
def test_the_score_is_the_published_one_and_parts_add_up(count, splits):
    p, split = probabilities(count), split_of(np.arange(count), count, splits)
    whole = ClassTotals.of(p, split, splits)
    np.testing.assert_allclose(whole.scores(), direct(p, splits), rtol=1e-10)
    one, *rest = (ClassTotals.of(p[a:b], split[a:b], splits) for a, b in ((0, 3), (3, 40), (40, count)))
    for other in rest:
        one = one + other
    np.testing.assert_allclose(one.scores(), whole.scores(), rtol=1e-12)


def test_known_scores():
    sure = np.eye(5)[np.arange(20) % 5]  # every class as often, and no doubt: as many as there are classes
    assert ClassTotals.of(sure, np.zeros(20, int), 1).scores() == pytest.approx([5])
    assert ClassTotals.of(np.full((4, 5), 0.2), np.zeros(4, int), 1).scores() == pytest.approx([1])
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0], [-1000, 0]])), [[0.5, 0.5], [0, 1]])


def test_the_interval_is_as_wide_as_scores_of_other_draws():
    scores = [direct(probabilities(200, seed=seed), 1)[0] for seed in range(150)]
    width = 2 * 1.96 * np.std(scores)
    found = [score_interval(probabilities(200, seed=seed)[:, None], 200, 1, 3.0, seed=seed) for seed in range(8)]
    assert np.mean([x.high - x.low for x in found]) / width == pytest.approx(1, abs=0.3)
    draw = [score_interval(probabilities(200, seed=seed)[:80, None], 200, 1, 3.0, seed=seed) for seed in range(8)]
    assert np.mean([x.high - x.low for x in draw]) / width == pytest.approx(1, abs=0.4)
    framed = score_interval(np.repeat(probabilities(200)[:, None], 3, 1), 200, 1, 3.0)
    assert framed.high - framed.low == pytest.approx(found[0].high - found[0].low, rel=1e-6)


def test_bad_input_is_refused():
    with refused("inception_score.ClassTotals.of", "1"):
        ClassTotals.of(np.ones((3, 4)), np.zeros(3, int), 1)
    with refused("inception_score.ClassTotals.scores", "10", "3"):
        ClassTotals.of(probabilities(3), np.arange(3), 10).scores()
