"""The check of shapes is installed, finds wrong arrays, and leaves refusing to the package where that refuses."""

from __future__ import annotations

import inspect
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from tests.refusals import refused
from tests.shapes import checked, of_array
from tests.test_types import hints, walk
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.kl import Moments
from vdm_jax.networks.layers import Dense
from vdm_jax.video.arrays import to_float


@jaxtyped(typechecker=checked)
def twice(x: Float[Array, "B C"], y: Float[Array, " B"], count: int = 2) -> Float[Array, "B C"]:
    if count < 0:
        raise UserError(f"count={count}; permitted: at least 0")
    return (x + y[:, None]).repeat(count // 2, axis=-1)


def test_what_fits_passes():
    assert twice(jnp.ones((2, 3)), jnp.ones(2)).shape == (2, 3)


@pytest.mark.parametrize("x, y, count, culprit", [
    (jnp.ones((2, 3)), jnp.ones(1), 2, "y"),  # it would broadcast
    (jnp.ones((2, 3), jnp.int32), jnp.ones(2), 2, "x"),
    (jnp.ones((2, 3)), jnp.ones(2), 4, "return"),  # the result is wider than the annotation says
])
def test_a_wrong_array_raises(x, y, count, culprit):
    with pytest.raises(TypeCheckError) as raised:
        twice(x, y, count)
    assert culprit in str(raised.value.__cause__)


def test_an_array_of_numpy_is_one_for_jax():
    assert twice(np.ones((2, 3), np.float32), jnp.ones(2)).shape == (2, 3)


def test_a_refusal_of_the_function_itself_comes_first():
    with refused("count", "count=-1"):
        twice(jnp.ones(3), jnp.ones(2), -1)


def test_the_package_is_checked_its_functions_and_its_modules():
    moments, weights = Moments(jnp.ones((1, 2, 4, 4, 3)), jnp.ones((1, 2, 4, 4, 3))), {"kernel": jnp.ones((3, 2))}
    with pytest.raises(TypeCheckError, match="sample"):
        moments.sample(jnp.ones((4, 4, 3)))  # one for all frames would broadcast
    with pytest.raises(TypeCheckError, match="Dense"):
        Dense(features=2, use_bias=False).apply({"params": weights}, jnp.ones((2, 3), jnp.int32))
    with refused("arrays.to_float", "permitted"):
        to_float(np.zeros(3, np.float32))


def test_the_check_is_in_tests_only():
    code = "import sys, vdm_jax.video.arrays; assert 'beartype' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_function_of_arrays_says_what_it_returns():
    """The check comes with the result, so a function without an annotated one would go unchecked."""
    silent = [f"{module}.{name}" for module, name, value in walk() if not inspect.isclass(value)
              and "return" not in (found := hints(module, value)) and any(map(of_array, found.values()))]
    assert not silent
