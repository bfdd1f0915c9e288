"""`attend` against dense softmax attention over all tokens, for everything the capability table permits on a CPU."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.attention.oracle import PATTERNS, assert_same, extra, name, reference, visible
from tests.refusals import refused
from vdm_jax.attention import (
    Causal,
    ExtraKeys,
    Full,
    LocalWindow,
    SparseCausal,
    Spatial,
    Temporal,
    TemporalCausal,
    WithExtraKeys,
    attend,
    cross_pattern,
)
from vdm_jax.attention.capability import CAPABILITIES, entries_for
from vdm_jax.attention.kernels import chunked, tiles
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

BATCH, SHAPE, HEADS, DIM = 2, (5, 3, 2), 2, 6
TOKENS = int(np.prod(SHAPE))
BOX = LocalWindow(frames=3, height=3, width=1)
KERNELS = sorted(k for (k, c), entry in CAPABILITIES.items() if c == "none" and "cpu" in entry.platforms)


def pairs(*patterns):
    """Parametrisation over kernels and those of the patterns that they list."""
    found = [(p, k) for k in KERNELS for p in patterns if (k, "none") in entries_for(p)]
    return pytest.mark.parametrize(("pattern", "kernel"), found, ids=[f"{k}-{name(p)}" for p, k in found])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8 rows, tiles of at most 4 rows and 64 logits, so that thirty tokens are several of them."""
    monkeypatch.setattr(chunked, "BLOCK", 8)
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(tiles, "QUERIES", 32)
    monkeypatch.setattr(tiles, "FEWEST", 2)


def inputs(seed=0, shape=SHAPE, batch=BATCH, heads=HEADS, dim=DIM):
    """Queries, keys, values; scores of order 3, so that weights are uneven."""
    rng = np.random.default_rng(seed)
    return {key: jnp.asarray(1.5 * rng.normal(size=(batch, *shape, heads, dim)), jnp.float32) for key in "qkv"}


def valid_frames():
    """Validity of frames: the second sample lacks its first and its last two."""
    valid = np.ones((BATCH, SHAPE[0]), bool)
    valid[1, [0, 3, 4]] = False
    return valid


def key_mask(valid):
    """Validity of frames as a mask over keys [B, 1, 1, S]."""
    return np.repeat(valid, TOKENS // SHAPE[0], axis=1)[:, None, None, :]


@pairs(*PATTERNS)
def test_equals_dense_attention(pattern, kernel):
    assert_same(lambda **a: attend(**a, pattern=pattern, kernel=kernel), inputs(), visible(pattern, SHAPE))


@pairs(Spatial(), Temporal(), Full(), TemporalCausal(window=3), SparseCausal(), BOX)
def test_masks_and_bias_together(pattern, kernel):
    """Two appended images, missing frames and a bias at once; gradient of the bias too."""
    frame_mask, valid = independent_frames_mask(3, 2), valid_frames()
    rows = {"frames": SHAPE[1] * SHAPE[2], "positions": SHAPE[0], "all": TOKENS}[pattern.layout]
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(HEADS, rows, rows)), jnp.float32)
    assert_same(
        lambda **a: attend(**a, pattern=pattern, kernel=kernel, frame_mask=frame_mask, frame_valid=jnp.asarray(valid)),
        inputs() | {"bias": bias}, visible(pattern, SHAPE, frame_mask) & key_mask(valid), layout=pattern.layout)


@pairs(Spatial(), Temporal(), TemporalCausal(window=3), SparseCausal())
@pytest.mark.parametrize("groups", [1, SHAPE[0]], ids=["clip", "per-frame"])
def test_external_tokens(pattern, kernel, groups):
    """Appended, with hidden tokens and missing frames; instead of the own tokens, all of them visible."""
    valid, outside = valid_frames(), extra(np.random.default_rng(2), BATCH, groups, 3, HEADS, DIM)
    mask = visible(pattern, SHAPE) & key_mask(valid)
    everything = inputs() | {"extra_k": outside.k, "extra_v": outside.v}

    def ours(mode, hidden, **options):
        return lambda q, k, v, extra_k, extra_v: attend(
            q, k, v, pattern=WithExtraKeys(inner=pattern, mode=mode), kernel=kernel,
            extra_keys=ExtraKeys(extra_k, extra_v, hidden), **options)

    assert_same(ours("append", outside.mask, frame_valid=jnp.asarray(valid)), everything, mask, extra_mask=outside.mask)
    if pattern == SparseCausal():  # the own tokens are not looked at, so that one pattern per kernel does
        assert_same(ours("replace", None), everything, np.zeros_like(mask))


@pytest.mark.parametrize("kernel", KERNELS)
def test_hidden_outside_tokens_alone(kernel):
    """Nothing but outside tokens, some of them hidden, all of them for one sample: zeros there."""
    outside = extra(np.random.default_rng(2), BATCH, 1, 3, HEADS, DIM)
    pattern = WithExtraKeys(inner=SparseCausal(), mode="replace")
    assert_same(lambda q, k, v, extra_k, extra_v: attend(q, k, v, pattern=pattern, kernel=kernel,
                                                       extra_keys=ExtraKeys(extra_k, extra_v, outside.mask)),
                inputs() | {"extra_k": outside.k, "extra_v": outside.v}, np.zeros((TOKENS, TOKENS), bool),
                extra_mask=outside.mask)


@pytest.mark.parametrize("kernel", ["auto", "xla", "chunked"])
@pytest.mark.parametrize("groups", [1, SHAPE[0]], ids=["clip", "per-frame"])
def test_cross_attention(groups, kernel):
    """Queries alone, without keys and values of the video; under `auto` the table chooses the kernel."""
    outside = extra(np.random.default_rng(2), BATCH, groups, 3, HEADS, DIM)
    assert_same(lambda q, k, v, extra_k, extra_v: attend(q, pattern=cross_pattern(groups), kernel=kernel,
                                                       extra_keys=ExtraKeys(extra_k, extra_v, outside.mask)),
                inputs() | {"extra_k": outside.k, "extra_v": outside.v}, np.zeros((TOKENS, TOKENS), bool),
                extra_mask=outside.mask)


@pytest.mark.parametrize("groups", [1, 4], ids=["clip", "per-frame"])
@pytest.mark.parametrize("sharded_axis", ["frames", "height"])
def test_cross_attention_moves_nothing_between_devices(sharded_axis, groups):
    """On a mesh that splits frames or rows every device computes its own queries."""
    dim = {"frames": 1, "height": 2}[sharded_axis]
    mesh = jax.make_mesh((2,), ("context",), axis_types=(AxisType.Auto,))
    outside, q = extra(np.random.default_rng(2), BATCH, groups, 3, HEADS, DIM), inputs(shape=(4, 4, 2))["q"]
    options = {"pattern": cross_pattern(groups), "extra_keys": outside}
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, P(*("context" if d == dim else None for d in range(6))))
        run = jax.jit(lambda q: attend(q, **options, sharded_axis=sharded_axis), in_shardings=place,
                      out_shardings=place)
        program, out = run.lower(q).compile().as_text(), run(jax.device_put(q, place))
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", program)
    np.testing.assert_allclose(out, attend(q, **options), rtol=1e-5, atol=1e-5)


def test_attention_among_tokens_needs_keys():
    with refused("attend.attend"):
        attend(inputs()["q"], pattern=Spatial())


@pairs(Temporal(), TemporalCausal(window=3), SparseCausal())
def test_bias_per_sequence(pattern, kernel):
    """One bias per sequence of the layout, as relative key vectors need."""
    n = TOKENS // SHAPE[0]
    rows = SHAPE[0] if pattern.layout == "positions" else TOKENS
    bias = np.random.default_rng(3).normal(size=(BATCH * TOKENS // rows, HEADS, rows, rows)).astype(np.float32)
    sharded_axis = bias
    if pattern.layout == "positions":  # [B, N, K, T, T] to [B, K, T, N, T, N], zero between different positions
        sharded_axis = np.einsum("bnkts,nm->bktnsm", bias.reshape(BATCH, n, HEADS, rows, rows), np.eye(n))
        sharded_axis = sharded_axis.reshape(BATCH, HEADS, TOKENS, TOKENS).astype(np.float32)
    mask = visible(pattern, SHAPE)
    q, k, v = inputs().values()

    def out_and_gradient(function, bias):
        def loss(b):
            out = function(b)
            return (out**3).sum(), out
        (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(bias))
        return out, gradient

    out, ours = out_and_gradient(lambda b: attend(q, k, v, pattern=pattern, kernel=kernel, bias=b), bias)
    expected, theirs = out_and_gradient(lambda b: reference(q, k, v, mask, b), sharded_axis)
    if pattern.layout == "positions":
        theirs = np.einsum("bktnsn->bnkts", theirs.reshape(BATCH, HEADS, rows, n, rows, n)).reshape(bias.shape)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    np.testing.assert_allclose(out, expected, atol=3e-6)


@pairs(Spatial(), Temporal(), Full(), SparseCausal())
def test_bfloat16_stays_close(pattern, kernel):
    """Within 0.08 for values of order 3: bfloat16 has 8 bits, and the result is a mean of such values."""
    low = [a.astype(jnp.bfloat16) for a in inputs().values()]

    def out_and_gradients(function, arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, pull(jnp.ones_like(out))

    out, found = jax.jit(functools.partial(out_and_gradients, functools.partial(attend, pattern=pattern,
                                                                                kernel=kernel)))(low)
    mask = visible(pattern, SHAPE)
    expected, wanted = jax.jit(functools.partial(out_and_gradients, lambda *a: reference(*a, mask)))(
        [a.astype(jnp.float32) for a in low])
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.08)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * max(1.0, np.abs(b).max()))


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_drawn_shapes_and_patterns(data):
    shape = tuple(data.draw(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))))
    pattern = data.draw(st.sampled_from(PATTERNS))
    kernel = data.draw(st.sampled_from([k for k in KERNELS if (k, "none") in entries_for(pattern)]))
    images = data.draw(st.integers(0, shape[0] - 1))
    frame_mask = independent_frames_mask(shape[0] - images, images) if images else None
    assert_same(lambda **a: attend(**a, pattern=pattern, kernel=kernel, frame_mask=frame_mask),
                inputs(1, shape, 1, 1, 2), visible(pattern, shape, frame_mask))


@pairs(Causal(), SparseCausal(), Temporal())
def test_a_frame_mask_without_formula(pattern, kernel):
    """Any mask between frames, here frames of different parity."""
    frame_mask = np.add.outer(np.arange(5), np.arange(5)) % 2 == 0
    assert_same(lambda **a: attend(**a, pattern=pattern, kernel=kernel, frame_mask=frame_mask), inputs(),
                visible(pattern, SHAPE, frame_mask))


@pytest.mark.parametrize("kernel", KERNELS)
def test_tokens_that_see_nothing_get_zeros_and_large_scores_stay_finite(kernel):
    pattern = SparseCausal(own=True)
    q = k = jnp.full((1, 2, 3, 1, 1, 4), 1e3)
    v = jnp.arange(24.0).reshape(1, 2, 3, 1, 1, 4)
    for options in ({"frame_mask": np.zeros((2, 2), bool)}, {"frame_valid": jnp.zeros((1, 2), bool)}):
        function = jax.jit(functools.partial(attend, pattern=pattern, kernel=kernel, **options))
        out, pull = jax.vjp(function, q, k, v)
        assert not out.any() and not any(g.any() for g in pull(jnp.ones_like(out)))
    out = attend(q, k, v, pattern=pattern, kernel=kernel)
    np.testing.assert_allclose(out[0, 1, 0, 0, 0], v.mean((0, 1, 2, 3, 4)), rtol=1e-5)


def test_an_appended_image_and_the_clip_do_not_touch_each_other():
    q, k, v = inputs().values()
    frame_mask = independent_frames_mask(4, 1)
    for pattern in (Full(), Temporal(), SparseCausal()):
        @jax.jit
        def out(v, pattern=pattern):
            return attend(q, k, v, pattern=pattern, frame_mask=frame_mask)

        changed = out(v.at[:, 4].add(1.0)) - out(v)
        assert not changed[:, :4].any() and changed[:, 4].any()
        assert not (out(v.at[:, :4].add(1.0)) - out(v))[:, 4].any()


@pytest.mark.parametrize(("options", "message"), [
    ({"kernel": "flash"}, ("capability.require", "kernel='flash'", "kernel='xla'", "context='none'")),
    ({"kernel": "gather"}, ("capability.require", "kernel='gather'", "context='none'")),
    ({"frame_mask": np.ones((2, 2), bool)}, ("attend._mask_bytes", "frame_mask", "2", "5")),
    ({"extra_keys": "one"}, ("attend._check_extra_keys",)),
    ({"pattern": WithExtraKeys(inner=Full())}, ("attend._check_extra_keys", "extra_keys=None")),
    ({"pattern": WithExtraKeys(inner=Full()), "extra_keys": "wrong"},
     ("attend._check_extra_keys", "3", "4", "[2, 1 or 5, tokens, 2, 6]")),
    ({"pattern": WithExtraKeys(mode="replace"), "extra_keys": "one", "bias": jnp.zeros((2, 6, 6))},
     ("attend._check_extra_keys", "bias=None")),
    ({"platform": "npu"}, ("platform", "='npu'")),
])
def test_what_cannot_be_attended_is_an_error(options, message):
    groups = {"one": 1, "wrong": 3}.get(options.get("extra_keys"))
    if groups:
        options = options | {"extra_keys": extra(np.random.default_rng(0), BATCH, groups, 4, HEADS, DIM)}
    with refused(*message):
        attend(**inputs(), **({"pattern": Full()} | options))


@pytest.mark.parametrize("kernel", KERNELS)
def test_on_a_mesh_nothing_changes(kernel):
    """Batch over data and fsdp, heads over tensor, inside jit: the same values and gradients as on one device."""
    pattern, mesh = SparseCausal(), make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))
    arrays, rng = inputs(batch=4), np.random.default_rng(0)
    valid = jnp.asarray(rng.random((4, SHAPE[0])) < 0.8)
    cotangent = jnp.asarray(rng.standard_normal(arrays["q"].shape), jnp.float32)

    def gradients(q, k, v):
        return jax.vjp(lambda *a: attend(*a, pattern=pattern, kernel=kernel, frame_valid=valid), q, k, v)[1](cotangent)

    expected = jax.jit(gradients)(**arrays)
    sharding = NamedSharding(mesh, P(("data", "fsdp"), None, None, None, "tensor", None))
    with jax.set_mesh(mesh):
        found = jax.jit(gradients)(**jax.device_put(arrays, sharding))
    for a, b in zip(found, expected, strict=True):
        assert a.sharding.is_equivalent_to(sharding, a.ndim)
        np.testing.assert_allclose(a, b, atol=1e-5)
