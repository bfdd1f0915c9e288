"""Patterns: their masks written out by hand, their pair counts, and the frame mask of joint training."""

from __future__ import annotations

import numpy as np
import pytest

from vdm_jax.attention.patterns import Full, Spatial, Temporal, attention_flops, independent_frames_mask

PATTERNS = (Spatial(), Temporal(), Full())


def test_masks_of_two_frames_of_two_tokens():
    """Rows see columns; tokens are numbered frame * N + position."""
    expected = {
        Spatial(): ["1100", "1100", "0011", "0011"],
        Temporal(): ["1010", "0101", "1010", "0101"],
        Full(): ["1111"] * 4,
    }
    for pattern, rows in expected.items():
        mask = np.array([[c == "1" for c in row] for row in rows])
        np.testing.assert_array_equal(pattern.visible(2, 2), mask, err_msg=str(pattern))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 2), (1, 6), (5, 1)], ids=str)
def test_pairs_and_flops_count_the_dense_mask(pattern, size):
    visible = pattern.visible(*size)
    assert visible.shape == (size[0] * size[1],) * 2 and visible.dtype == bool
    assert pattern.pairs(*size) == visible.sum()
    # Scores and weighted sum: one multiply-add each per visible pair, head and feature.
    assert attention_flops(pattern, *size, heads=3, head_dim=7) == visible.sum() * 3 * 7 * 2 * 2


def test_patterns_are_values():
    assert Spatial() == Spatial() and len({Spatial(), Spatial(), Temporal(), Full()}) == 3


def test_independent_frames_mask():
    rows = ["11100", "11100", "11100", "00010", "00001"]
    expected = np.array([[c == "1" for c in row] for row in rows])
    np.testing.assert_array_equal(independent_frames_mask(3, 2), expected)
    np.testing.assert_array_equal(independent_frames_mask(3, 0), np.ones((3, 3), bool))
    np.testing.assert_array_equal(independent_frames_mask(0, 3), np.eye(3, dtype=bool))
