"""Sinusoid codes against plain formulas."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from tests.refusals import refused
from vdm_jax.networks.blocks.sinusoids import grid_sinusoids, sinusoids


def test_sinusoids_span_periods_from_2_pi_to_the_longest():
    x = np.array([0.0, 1.5, 700.0])
    code = sinusoids(jnp.asarray(x), 6, max_period=100.0)
    frequency = np.array([1.0, 0.1, 0.01])
    np.testing.assert_allclose(code[:, :3], np.sin(x[:, None] * frequency), atol=1e-4)
    np.testing.assert_allclose(code[:, 3:], np.cos(x[:, None] * frequency), atol=1e-4)


def test_the_code_of_a_grid():
    code = grid_sinusoids((range(3),), 4, base=100.0)
    np.testing.assert_allclose(code[2], [np.sin(2), np.sin(0.2), np.cos(2), np.cos(0.2)], rtol=1e-6)
    grid = grid_sinusoids((range(4), range(3)), 11)
    assert grid.shape == (4, 3, 11) and not grid[..., 8:].any()
    np.testing.assert_array_equal(grid[:, 0, :4], grid[:, 2, :4])
    np.testing.assert_array_equal(grid[0, :, 4:8], grid[3, :, 4:8])
    np.testing.assert_array_equal(grid_sinusoids((np.zeros(2, int),), 4)[1], [0, 0, 1, 1])
    with refused("head_dim", "=5"):
        grid_sinusoids((range(2),) * 3, 5)
