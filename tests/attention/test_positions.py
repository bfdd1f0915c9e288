"""Rotary positions depend on offsets only and keep norms; relative indices are clipped offsets."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.attention.positions import relative_index, rotary, rotary_axis_dims
from vdm_jax.errors import UserError

T, H, W = 4, 3, 5


@pytest.fixture(scope="module")
def vectors():
    """One query and one key vector with 2 heads of 14 features."""
    return np.random.default_rng(0).normal(size=(2, 2, 14)).astype(np.float32)


def everywhere(vector):
    return jnp.broadcast_to(vector, (1, T, H, W, *vector.shape))


@pytest.mark.parametrize("axes", ["thw", "hw", "t"])
def test_scores_depend_on_offsets_along_the_axes_only(axes, vectors):
    """The same query and key at every pair of places: one score per offset."""
    q, k = (rotary(everywhere(v), axes=axes)[0] for v in vectors)
    scores = np.asarray(jnp.einsum("abckd,efgkd->abcefgk", q, k))
    places = np.stack(np.meshgrid(*map(np.arange, (T, H, W)), indexing="ij"), axis=-1)
    offsets = places[None, None, None] - places[:, :, :, None, None, None]  # key minus query, [t,h,w,t,h,w,3]
    offsets = offsets[..., ["thw".index(a) for a in axes]].reshape(-1, len(axes))
    by_offset = {}
    for offset, score in zip(map(tuple, offsets), scores.reshape(len(offsets), -1), strict=True):
        by_offset.setdefault(offset, []).append(score)
    means = {offset: np.mean(group, axis=0, dtype=np.float64) for offset, group in by_offset.items()}
    for offset, group in by_offset.items():
        np.testing.assert_allclose(group, np.broadcast_to(means[offset], np.shape(group)), atol=3e-5)
    # And different offsets along each axis alone have different scores.
    for i in range(len(axes)):
        zero, one = (0,) * len(axes), tuple(int(i == j) for j in range(len(axes)))
        minus = tuple(-x for x in one)
        for a, b in ((zero, one), (zero, minus), (one, minus)):
            assert np.abs(means[a] - means[b]).max() > 1e-3, (a, b)


@pytest.mark.parametrize("axes", ["thw", "hw", "t"])
def test_norms_are_kept_and_the_origin_is_not_turned(axes):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, T, H, W, 2, 14)), jnp.float32)
    y = rotary(x, axes=axes)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(y[:, 0, 0, 0], x[:, 0, 0, 0], atol=1e-7)
    rotated = sum(rotary_axis_dims(14, len(axes)))
    np.testing.assert_array_equal(y[..., rotated:], x[..., rotated:])  # what is left over stays
    assert np.abs(y[:, -1, -1, -1, :, :rotated] - x[:, -1, -1, -1, :, :rotated]).max() > 0.1


def test_angle_is_the_place_times_the_frequency():
    """Pair (1, 0) of frequency j at frame p becomes (cos, sin) of p * base^(-2j/dim)."""
    x = jnp.zeros((1, T, 1, 1, 1, 8)).at[..., :4].set(1.0)  # first halves of the pairs
    y = np.asarray(rotary(x, axes="t", base=100.0))[0, :, 0, 0, 0]
    angle = np.arange(T)[:, None] * 100.0 ** (-np.arange(4) * 2 / 8)
    np.testing.assert_allclose(y, np.concatenate([np.cos(angle), np.sin(angle)], axis=-1), atol=1e-6)


def test_axis_dims():
    assert rotary_axis_dims(32, 3) == (10, 10, 10)
    assert rotary_axis_dims(16, 2) == (8, 8)
    assert rotary_axis_dims(6, 3) == (2, 2, 2)
    with pytest.raises(UserError, match="head_dim=5 is too small for rotary positions over 3 axes; permitted: >= 6"):
        rotary_axis_dims(5, 3)


def test_relative_index_is_the_clipped_offset_from_query_to_key():
    np.testing.assert_array_equal(relative_index(4, 2), [[2, 3, 4, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]])
