"""Percentiles without a sort."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.diffusion.percentile import percentile_of_magnitudes
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

VIDEO = np.random.default_rng(0).normal(size=(2, 4, 8, 6, 3)).astype(np.float32)
CASES = {"random": VIDEO, "ties": np.round(VIDEO), "zeros": 0 * VIDEO, "small": 1e-30 * VIDEO}


@pytest.mark.parametrize("percentile", [0.1, 50.0, 99.5, 100.0])
@pytest.mark.parametrize("axes", [(1, 2, 3, 4), (2, 3, 4)])
def test_it_is_that_of_numpy(percentile, axes):
    for x in CASES.values():
        got = jax.jit(lambda x: percentile_of_magnitudes(x, percentile, axes))(x)
        expected = np.percentile(np.abs(x).astype(np.float64), percentile, axes, keepdims=True)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-37)


def test_devices_send_counts_and_no_values():
    mesh = make_mesh(MeshSpec(data=2, context=4))
    split = NamedSharding(mesh, P("data", None, "context"))
    function = jax.jit(lambda x: percentile_of_magnitudes(x, 99.5, (1, 2, 3, 4)), in_shardings=split)
    assert "all-gather" not in function.lower(VIDEO).compile().as_text()
    np.testing.assert_allclose(function(VIDEO), percentile_of_magnitudes(jnp.asarray(VIDEO), 99.5, (1, 2, 3, 4)))
