"""Scores that are no numbers."""

from __future__ import annotations

import math

import pytest

from vdm_jax.errors import NotFinite
from vdm_jax.metrics.scores import require_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_named_with_their_file(value):
    with pytest.raises(NotFinite) as error:
        require_finite({"motion": 0.5, "fvd (original)": value, "ssim": 1.0}, "run/metrics.json")
    assert str(error.value) == f"fvd (original) is {value}; all scores are in run/metrics.json"
    require_finite({"motion": 0.5}, "run/metrics.json")
