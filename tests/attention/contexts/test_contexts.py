"""Every context on 8 virtual devices against dense softmax attention over all tokens, forward and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.oracle import PATTERNS, assert_same, bank, name, visible
from vdm_jax.attention import Bank, External, attend
from vdm_jax.attention.capability import CAPABILITIES, entries_for
from vdm_jax.attention.kernels import chunked
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

BATCH, SHAPE, HEADS, DIM = 2, (8, 3, 2), 4, 4
TOKENS = int(np.prod(SHAPE))
SPREAD = sorted((c, k) for (k, c), entry in CAPABILITIES.items() if c != "none" and "cpu" in entry.platforms)


@pytest.fixture(autouse=True)
def mesh(monkeypatch):
    """Two samples by four devices with two frames each; blocks of 8 rows, so that 12 tokens are several blocks."""
    monkeypatch.setattr(chunked, "BLOCK", 8)
    with jax.set_mesh(make_mesh(MeshSpec(data=2, context=4))):
        yield


def inputs(seed=0, shape=SHAPE, batch=BATCH, heads=HEADS, dim=DIM):
    """Queries, keys, values; scores of order 3, so that weights are uneven."""
    rng = np.random.default_rng(seed)
    return {key: jnp.asarray(1.5 * rng.normal(size=(batch, *shape, heads, dim)), jnp.float32) for key in "qkv"}


FOUND = [(c, k, p) for c, k in SPREAD for p in PATTERNS if (k, c) in entries_for(p)]


@pytest.mark.parametrize(("context", "kernel", "pattern"), FOUND, ids=[f"{c}-{k}-{name(p)}" for c, k, p in FOUND])
def test_equals_dense_attention(context, kernel, pattern):
    assert_same(lambda **a: attend(**a, pattern=pattern, kernel=kernel, context=context), inputs(),
                visible(pattern, SHAPE))
