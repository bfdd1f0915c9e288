"""The cuDNN kernel: its gathers, lengths and windows against dense attention through JAX's own implementation of the
same function on a CPU, and cuDNN itself where there is one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.oracle import PATTERNS, assert_same, extra, name, reference, visible
from vdm_jax.attention import ExtraKeys, Full, LocalWindow, Spatial, TeacherForcing, attend
from vdm_jax.attention.block_mask import SequenceLayout
from vdm_jax.attention.kernels import cudnn

SHAPE = (4, 2, 3)
PERMITTED = [p for p in PATTERNS if not isinstance(p, LocalWindow | TeacherForcing)]


def inputs(dim=8):
    rng = np.random.default_rng(0)
    return {key: jnp.asarray(1.5 * rng.normal(size=(2, *SHAPE, 2, dim)), jnp.float32) for key in "qkv"}


@pytest.mark.parametrize("pattern", PERMITTED, ids=name)
def test_what_is_asked_of_cudnn_is_the_pattern(pattern, monkeypatch):
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
    assert_same(lambda q, k, v: cudnn.attention(q, k, v, SequenceLayout(pattern, SHAPE)), inputs(),
                visible(pattern, SHAPE))


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize(("inner", "groups"), [(Full(), 1), (Spatial(), 1), (Spatial(), SHAPE[0])], ids=str)
def test_outside_tokens(inner, groups, mode, monkeypatch):
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
    own, outside = mode == "append", extra(np.random.default_rng(2), 2, groups, 3, 2, 8)
    mask = visible(inner, SHAPE) if own else np.zeros_like(visible(inner, SHAPE))
    assert_same(lambda q, k, v, extra_k, extra_v: cudnn.attention(
        q, k if own else None, v if own else None, SequenceLayout(inner, SHAPE), extra_keys=ExtraKeys(extra_k, extra_v),
        own=own), inputs() | {"extra_k": outside.k, "extra_v": outside.v}, mask)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU with cuDNN")
@pytest.mark.parametrize("pattern", PERMITTED, ids=name)
def test_cudnn_equals_dense_attention(pattern):
    q, k, v = (a.astype(jnp.bfloat16) for a in inputs(64).values())
    out, pull = jax.vjp(lambda *a: attend(*a, pattern=pattern, kernel="cudnn"), q, k, v)
    full = [a.astype(jnp.float32) for a in (q, k, v)]
    expected, pull_expected = jax.vjp(lambda *a: reference(*a, visible(pattern, SHAPE)), *full)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.08)
    for a, b in zip(pull(jnp.ones_like(out)), pull_expected(jnp.ones_like(expected)), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * max(1.0, np.abs(b).max()))
