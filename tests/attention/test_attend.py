"""`attend` against dense softmax attention over all tokens in numpy, for everything the capability table permits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.attention import Full, Spatial, Temporal, attend
from vdm_jax.attention.capability import CAPABILITIES
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.errors import UserError

PATTERNS = {"Spatial": Spatial(), "Temporal": Temporal(), "Full": Full()}
COMBINATIONS = [(name, kernel, context) for (kernel, context), names in sorted(CAPABILITIES.items())
                for name in sorted(names)]
BATCH, FRAMES, TOKENS, HEADS, DIM = 2, 4, 5, 3, 6


@pytest.fixture(scope="module")
def qkv():
    """Queries, keys, values and a cotangent, [B, T, N, K, D]; scores of order 3, so that weights are uneven."""
    return 1.5 * np.random.default_rng(0).normal(size=(4, BATCH, FRAMES, TOKENS, HEADS, DIM)).astype(np.float32)


def dense(q, k, v, visible, bias=None):
    """Softmax attention over all S tokens with a boolean mask [S, S] and a bias [K, S, S]: the definition."""
    flat = (BATCH, FRAMES * TOKENS, HEADS, DIM)
    q, k, v = (a.reshape(flat) for a in (q, k, v))
    scores = jnp.einsum("bqkd,bskd->bkqs", q, k) / jnp.sqrt(DIM)
    scores = scores if bias is None else scores + bias
    weights = jnp.where(visible, jnp.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.einsum("bkqs,bskd->bqkd", weights, v).reshape(BATCH, FRAMES, TOKENS, HEADS, DIM)


def assert_same(function, reference, qkv):
    """Equal values and equal gradients with respect to q, k and v for a random cotangent."""
    *inputs, cotangent = (jnp.asarray(a) for a in qkv)
    with jax.default_matmul_precision("highest"):
        out, pull = jax.vjp(function, *inputs)
        expected, pull_expected = jax.vjp(reference, *inputs)
        np.testing.assert_allclose(out, expected, atol=2e-6)
        for name, a, b in zip("qkv", pull(cotangent), pull_expected(cotangent), strict=True):
            assert np.abs(b).max() > 0.1  # a gradient of zeros would prove nothing
            np.testing.assert_allclose(a, b, atol=2e-5, err_msg=f"gradient of {name}")


@pytest.mark.parametrize(("name", "kernel", "context"), COMBINATIONS)
def test_equals_dense_attention(name, kernel, context, qkv):
    pattern = PATTERNS[name]
    visible = pattern.visible(FRAMES, TOKENS)
    assert_same(lambda *a: attend(*a, pattern=pattern, kernel=kernel, context=context),
                lambda *a: dense(*a, visible), qkv)


@pytest.mark.parametrize(("name", "kernel", "context"), COMBINATIONS)
def test_frame_mask_equals_dense_attention(name, kernel, context, qkv):
    pattern = PATTERNS[name]
    frame_mask = independent_frames_mask(FRAMES - 2, 2)
    visible = pattern.visible(FRAMES, TOKENS) & np.kron(frame_mask, np.ones((TOKENS, TOKENS), bool))
    assert_same(lambda *a: attend(*a, pattern=pattern, kernel=kernel, context=context, frame_mask=frame_mask),
                lambda *a: dense(*a, visible), qkv)


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_bias_is_in_the_layout_of_the_pattern(name, qkv):
    """A bias [K, queries, keys] of the pattern's layout, written out over all tokens for the reference."""
    pattern, rng = PATTERNS[name], np.random.default_rng(1)
    frame, position = np.divmod(np.arange(FRAMES * TOKENS), TOKENS)
    place = {"frames": position, "positions": frame, "all": np.arange(FRAMES * TOKENS)}[pattern.layout]
    bias = rng.normal(size=(HEADS, place.max() + 1, place.max() + 1)).astype(np.float32)
    everywhere = bias[:, place[:, None], place[None, :]]
    assert_same(lambda *a: attend(*a, pattern=pattern, bias=jnp.asarray(bias)),
                lambda *a: dense(*a, pattern.visible(FRAMES, TOKENS), everywhere), qkv)


def test_low_precision_keeps_its_dtype_and_is_close(qkv):
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in qkv[:3])
    out = attend(q, k, v, pattern=Full())
    assert out.dtype == jnp.bfloat16
    expected = dense(*(a.astype(jnp.float32) for a in (q, k, v)), Full().visible(FRAMES, TOKENS))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.06)


def test_large_scores_and_fully_masked_rows_stay_finite():
    q = k = jnp.full((1, 2, 3, 1, 4), 1e3)
    v = jnp.arange(24.0).reshape(1, 2, 3, 1, 4)
    out, pull = jax.vjp(lambda *a: attend(*a, pattern=Full(), frame_mask=np.zeros((2, 2), bool)), q, k, v)
    assert np.isfinite(out).all() and all(np.isfinite(g).all() for g in pull(jnp.ones_like(out)))
    np.testing.assert_allclose(attend(q, k, v, pattern=Full())[0, 0, 0, 0], v.mean((0, 1, 2, 3)), rtol=1e-5)


def test_unsupported_combination_is_an_error(qkv):
    q, k, v = (jnp.asarray(a) for a in qkv[:3])
    with pytest.raises(UserError, match=r"kernel='flash'.*permitted: kernel='xla' with context='none'"):
        attend(q, k, v, pattern=Full(), kernel="flash")
