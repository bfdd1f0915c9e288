"""Gaussian long videos: the closed form against samples of the plan, and what is exact for a process without memory."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.long_video.gaussian import covariance, joint, lasting, memoryless
from vdm_jax.generation.long_video.plan import Autoregressive, NuwaXL

METHODS = [Autoregressive(overlap=1), Autoregressive(overlap=3), NuwaXL()]


@pytest.mark.parametrize("method", METHODS)
def test_plans_are_exact_for_a_process_without_memory(method):
    """One frame says all of the past, and two all of what is outside them."""
    exact = covariance(memoryless, 28)
    made, divergence = joint(method, exact, size=4)
    np.testing.assert_allclose(made, exact, atol=1e-10)
    assert abs(divergence) < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_the_divergence_is_that_of_the_covariances(method):
    exact = covariance(lasting, 28)
    made, divergence = joint(method, exact, size=4)
    of_both = 0.5 * (np.trace(np.linalg.solve(made, exact)) - 28 + np.linalg.slogdet(made)[1]
                     - np.linalg.slogdet(exact)[1])
    np.testing.assert_allclose(divergence, of_both, rtol=1e-8)
    assert divergence > 0.05


def test_what_a_hierarchy_keeps_and_what_extension_forgets():
    exact = covariance(lasting, 226)
    hierarchy, extension = (joint(method, exact, size=16)[0] for method in (NuwaXL(), Autoregressive(overlap=1)))
    np.testing.assert_allclose(hierarchy[0, ::15], exact[0, ::15], atol=1e-10)  # key frames are exact
    assert exact[0, -1] > 0.4 and extension[0, -1] < 0.1
