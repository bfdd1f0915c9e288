"""Rotary positions depend on offsets only and keep norms; relative indices are clipped offsets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention import Causal, ExtraKeys, Spatial, Temporal, TemporalCausal, WithExtraKeys, attend
from vdm_jax.attention.positions import (
    LAYOUT_AXES,
    bucket_index,
    relative_index,
    relative_key_bias,
    rotary,
    rotary_axis_dims,
    sum_of_axes,
)

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
    with refused("head_dim", "=5", ">= 6"):
        rotary_axis_dims(5, 3)


def test_relative_index_is_the_clipped_offset_from_query_to_key():
    np.testing.assert_array_equal(relative_index(4, 2), [[2, 3, 4, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]])


def test_buckets_count_single_steps_first_and_then_powers():
    """8 buckets up to distance 16, by hand: 0 and 1 alone, 2 to 5 together (2 * 8^(1/2) = 5.7), 6 and more."""
    index = bucket_index(20, 8, 16)
    np.testing.assert_array_equal(index[19, ::-1][:20], [0, 1, 2, 2, 2, 2] + [3] * 14)  # keys before the query
    np.testing.assert_array_equal(index[0, 1:7], [5, 6, 6, 6, 6, 7])  # keys after it
    for row in range(20):  # a function of the offset
        np.testing.assert_array_equal(np.diagonal(index, row - 10), index[max(10 - row, 0), max(row - 10, 0)])
    large = bucket_index(300, 32, 128)
    assert large.min() == 0 and large.max() == 31 and (np.diff(large[0, 1:]) >= 0).all()
    assert (large[0, 91:] == 31).all() and large[0, 90] == 30  # 8 * 16^(7/8) = 90.5


def test_sum_of_axes_adds_the_bias_of_every_axis():
    rng = np.random.default_rng(0)
    biases = {a: jnp.asarray(rng.normal(size=(2, n, n)), jnp.float32) for a, n in (("t", T), ("h", H), ("w", W))}
    total = np.asarray(sum_of_axes(biases, (T, H, W))).reshape(2, T, H, W, T, H, W)
    for q, k in (((0, 0, 0), (3, 2, 4)), ((2, 1, 3), (1, 2, 0))):
        expected = sum(b[:, q[i], k[i]] for i, b in enumerate(biases.values()))
        np.testing.assert_allclose(total[(slice(None), *q, *k)], expected, rtol=1e-6)


@pytest.mark.parametrize("layout", sorted(LAYOUT_AXES))
def test_relative_keys_are_what_adding_vectors_to_the_keys_gives(layout):
    """q . (k + r) = q . k + bias: the bias against the sum of vectors of the offsets, pair by pair."""
    rng = np.random.default_rng(1)
    q = rng.normal(size=(2, T, H, W, 3, 8)).astype(np.float32)
    vectors = {a: rng.normal(size=(5, 8)).astype(np.float32) for a in LAYOUT_AXES[layout]}
    bias = np.asarray(relative_key_bias(jnp.asarray(q), {a: jnp.asarray(x) for a, x in vectors.items()}, layout))
    rows = {"frames": H * W, "positions": T, "all": T * H * W}[layout]
    assert bias.shape == (2 * T * H * W // rows, 3, rows, rows)
    for a, b in (((0, 1, 2), (3, 0, 1)), ((2, 2, 0), (1, 1, 4))):
        places = [tuple(x if ax in LAYOUT_AXES[layout] else 1 for x, ax in zip(p, "thw", strict=True)) for p in (a, b)]
        (t, h, w), (t2, h2, w2) = places
        offsets = zip("thw", *places, strict=True)
        r = sum(vectors[ax][np.clip(k - i, -2, 2) + 2] for ax, i, k in offsets if ax in vectors)
        sequence, query, key = {"frames": (T + t, h * W + w, h2 * W + w2),
                                "positions": (H * W + h * W + w, t, t2),
                                "all": (1, (t * H + h) * W + w, (t2 * H + h2) * W + w2)}[layout]
        np.testing.assert_allclose(bias[sequence, :, query, key], q[1, t, h, w] @ r / np.sqrt(8), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("layout", sorted(LAYOUT_AXES))
def test_relative_values_are_what_adding_vectors_to_the_values_gives(layout):
    """The whole of attention by hand, with a value per pair of tokens; gradients too."""
    pattern = {"frames": Spatial(), "positions": Temporal(), "all": Causal()}[layout]
    rng = np.random.default_rng(2)
    q, k, v, cotangent = (jnp.asarray(rng.normal(size=(2, T, H, W, 3, 8)), jnp.float32) for _ in range(4))
    vectors = {a: jnp.asarray(rng.normal(size=(5, 8)), jnp.float32) for a in LAYOUT_AXES[layout]}
    place = np.stack(np.unravel_index(np.arange(T * H * W), (T, H, W)))
    offset = np.clip(place[:, None, :] - place[:, :, None], -2, 2) + 2  # [axis, query, key]

    def by_hand(q, k, v, vectors):
        q, k, v = (a.reshape(2, -1, 3, 8) for a in (q, k, v))
        logits = jnp.einsum("bqkd,bskd->bkqs", q, k) / np.sqrt(8)
        weights = jax.nn.softmax(jnp.where(pattern.visible((T, H, W)), logits, -jnp.inf), axis=-1)
        vector = sum(table[offset["thw".index(a)]] for a, table in vectors.items())
        out = jnp.einsum("bkqs,bskd->bqkd", weights, v) + jnp.einsum("bkqs,qsd->bqkd", weights, vector)
        return out.reshape(2, T, H, W, 3, 8)

    def ours(q, k, v, vectors):
        return attend(q, k, v, pattern=pattern, offset_values=vectors)

    (out, pull), (expected, expected_pull) = (jax.vjp(f, q, k, v, vectors) for f in (ours, by_hand))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), pull(cotangent), expected_pull(cotangent))


@pytest.mark.parametrize("kernel", ["chunked", "gather"])
def test_kernels_that_hold_no_weights_refuse_relative_values(kernel):
    x = jnp.zeros((1, T, H, W, 1, 8))
    vectors = {"t": jnp.zeros((5, 8))}
    with refused("capability.resolve", f"kernel='{kernel}'", "offset_values", "'xla'"):
        attend(x, x, x, pattern=TemporalCausal(window=2), kernel=kernel, offset_values=vectors)
    extra = ExtraKeys(jnp.zeros((1, 1, 2, 1, 8)), jnp.zeros((1, 1, 2, 1, 8)))
    with refused("attend._check_extra_keys", "offset_values"):
        attend(x, x, x, pattern=WithExtraKeys(inner=Temporal(), mode="replace"), offset_values=vectors,
               extra_keys=extra)
