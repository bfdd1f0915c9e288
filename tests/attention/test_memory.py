"""Memory of attention as the compiler reports it: nothing is run, so that the sizes can be real ones."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from vdm_jax.attention import Causal, Full, LocalWindow, SparseCausal, attend

GIB = 2**30


@functools.cache
def temporary_bytes(pattern, kernel, shape, heads=8, dim=64):
    """Temporary memory of forward and backward of one clip in float32."""
    x = jax.ShapeDtypeStruct((1, *shape, heads, dim), jnp.float32)
    loss = lambda q, k, v: (attend(q, k, v, pattern=pattern, kernel=kernel) ** 2).sum()
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes


def test_chunked_full_attention_over_65536_tokens_takes_less_than_4_gib():
    """Dense logits alone would be 128 GiB."""
    assert temporary_bytes(Full(), "chunked", (16, 64, 64)) < 1 * GIB


@pytest.mark.parametrize("pattern", [Full(), Causal(), LocalWindow()], ids=str)
def test_chunked_memory_is_linear_in_tokens(pattern):
    assert temporary_bytes(pattern, "chunked", (16, 64, 64)) <= 4.4 * temporary_bytes(pattern, "chunked", (4, 64, 64))


@pytest.mark.parametrize("kernel", ["gather", "chunked"])
def test_sparse_causal_memory_is_linear_in_frames(kernel):
    short, long = (temporary_bytes(SparseCausal(), kernel, (t, 16, 16)) for t in (16, 64))
    assert long <= 4.4 * short
