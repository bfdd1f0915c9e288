"""Filled parameters, so that tests compile no initialisation and zero-initialised layers do something."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def fill(module, *inputs, seed=0, **options):
    """Random parameters of a module called with `inputs`: kernels of unit gain, everything else of order 0.3."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.3
        return jnp.asarray((name == "scale") + scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def filled():
    """The function `fill(module, *inputs, seed=0, **options)`."""
    return fill


@pytest.fixture(scope="session")
def normal():
    """Standard normal float32 array: `normal(seed, *shape)`."""
    return lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
