"""Every context on 8 virtual devices against dense softmax attention over all tokens, forward and gradients.

The whole table is compared in `make test-full`, a choice of it always.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attention.oracle import PATTERNS, assert_same, extra, name, visible
from vdm_jax.attention import (
    Causal,
    ExtraKeys,
    FirstFrames,
    Full,
    LocalWindow,
    SparseCausal,
    Spatial,
    Temporal,
    TemporalCausal,
    WithExtraKeys,
    attend,
)
from vdm_jax.attention.block_mask import SequenceLayout
from vdm_jax.attention.capability import CAPABILITIES, entries_for
from vdm_jax.attention.contexts.ring import Ring
from vdm_jax.attention.kernels import chunked
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

BATCH, SHAPE, HEADS, DIM = 2, (8, 3, 2), 4, 4
TOKENS = int(np.prod(SHAPE))
BOX = LocalWindow(frames=3, height=3, width=3)
assert_close = functools.partial(assert_same, atol=1e-5, grad_atol=1e-4)  # contexts sum in another order

ENTRIES = [(c, k, p) for k, c in CAPABILITIES if c != "none" and "cpu" in CAPABILITIES[k, c].platforms
           for p in PATTERNS if (k, c) in entries_for(p)]
ALWAYS = {
    ("all_gather", "xla"): (Full(), Causal(), SparseCausal(), TemporalCausal(window=3), BOX),
    ("all_gather", "chunked"): (Causal(),),
    ("halo", "gather"): (SparseCausal(), FirstFrames(), TemporalCausal(window=3), BOX),
    ("halo", "xla"): (Spatial(), SparseCausal(own=True)),
    ("halo", "chunked"): (Causal(window=2),),
    ("ulysses", "xla"): (Causal(), Temporal()),
    ("ring", "xla"): (Full(), Causal(), SparseCausal(), TemporalCausal(window=3), BOX),
    ("ring", "chunked"): (Full(), BOX),
    ("zigzag_ring", "xla"): (Causal(),),
    ("zigzag_ring", "chunked"): (Causal(),),
    ("ulysses_ring", "xla"): (Causal(),),
    ("relayout", "xla"): (Temporal(),),
    ("relayout", "gather"): (TemporalCausal(window=3),),
}
MASKED = [("all_gather", "xla", Temporal()), ("all_gather", "chunked", SparseCausal()),
          ("halo", "gather", SparseCausal()), ("halo", "chunked", BOX), ("ulysses", "xla", Causal()),
          ("ring", "xla", Causal()), ("ring", "chunked", SparseCausal()),
          ("zigzag_ring", "xla", Causal()), ("ulysses_ring", "xla", SparseCausal()),
          ("relayout", "xla", Temporal())]
cases = pytest.mark.parametrize(("context", "kernel", "pattern"), MASKED, ids=[f"{c}-{k}-{name(p)}"
                                                                               for c, k, p in MASKED])


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


def valid_frames():
    """Validity of frames: the second sample lacks its first and three later ones, all those of one device included."""
    valid = np.ones((BATCH, SHAPE[0]), bool)
    valid[1, [0, 2, 3, 6]] = False
    return valid


def key_mask(valid):
    """Validity of frames as a mask over keys [B, 1, 1, S]."""
    return np.repeat(valid, TOKENS // SHAPE[0], axis=1)[:, None, None, :]


@pytest.mark.parametrize(("context", "kernel", "pattern"), [
    pytest.param(c, k, p, id=f"{c}-{k}-{name(p)}", marks=() if p in ALWAYS.get((c, k), ()) else pytest.mark.full)
    for c, k, p in ENTRIES])
def test_equals_dense_attention(context, kernel, pattern):
    assert_close(lambda **a: attend(**a, pattern=pattern, kernel=kernel, context=context), inputs(),
                 visible(pattern, SHAPE))


def test_every_context_is_always_compared():
    assert {c for c, _ in ALWAYS} == {c for _, c in CAPABILITIES} - {"none"}
    assert {(c, k, p) for (c, k), patterns in ALWAYS.items() for p in patterns} <= set(ENTRIES)


@cases
def test_masks_and_bias_together(context, kernel, pattern):
    """Two appended images, missing frames, and a bias where the context takes one; gradient of the bias too."""
    frame_mask, valid = independent_frames_mask(6, 2), valid_frames()
    arrays = inputs()
    if CAPABILITIES[kernel, context].bias:
        rows = {"positions": SHAPE[0], "all": TOKENS}[pattern.layout]
        bias = np.random.default_rng(1).normal(size=(HEADS, rows, rows))
        arrays["bias"] = jnp.asarray(bias, jnp.float32)
    assert_close(
        lambda **a: attend(**a, pattern=pattern, kernel=kernel, context=context, frame_mask=frame_mask,
                           frame_valid=jnp.asarray(valid)),
        arrays, visible(pattern, SHAPE, frame_mask) & key_mask(valid), layout=pattern.layout)


@pytest.mark.parametrize(("pattern", "frames", "zigzag", "before", "after"), [
    (SparseCausal(), 8, False, [0, 1, 2, 3], [0, 1]),
    (SparseCausal(previous=False), 8, False, [0, 1, 2, 3], []),
    (SparseCausal(own=True), 16, True, [0, 1, 2, 3], [0, 1, 3]),
    (SparseCausal(own=True), 8, True, [0, 1, 2, 3], [0, 1, 2, 3]),  # would save two frames and cost as many
    (SparseCausal(first=False), 8, False, [0, 1], [0, 1]),
    (Causal(), 8, False, [0, 1, 2, 3], [0, 1, 2, 3]),
])
def test_a_first_frame_seen_by_all_does_not_go_round(pattern, frames, zigzag, before, after):
    ring = Ring("xla", SequenceLayout(pattern, (frames, 3, 2)), 4, 1, zigzag)
    assert ring.distances() == before
    chosen = ring.with_first_apart()
    assert chosen.distances() == after and chosen.apart == (before != after)
    assert not dataclasses.replace(ring, stride=2).with_first_apart().apart


def test_a_first_frame_apart_is_joined_under_zigzag():
    shape, valid = (16, 2, 1), np.ones((BATCH, 16), bool)
    valid[1, [0, 5]] = False
    assert_close(lambda **a: attend(**a, pattern=SparseCausal(), kernel="xla", context="zigzag_ring",
                                    frame_valid=jnp.asarray(valid)),
                 inputs(shape=shape), visible(SparseCausal(), shape) & np.repeat(valid, 2, axis=1)[:, None, None, :])


@pytest.mark.parametrize(("context", "kernel"), [("all_gather", "chunked"), ("halo", "gather"), ("zigzag_ring", "xla"),
                                                 pytest.param("ring", "chunked", marks=pytest.mark.full)])
def test_a_frame_mask_without_formula(context, kernel):
    """Any mask between frames, here frames of different parity."""
    frame_mask, pattern = np.add.outer(np.arange(8), np.arange(8)) % 2 == 0, Causal(window=5)
    assert_close(lambda **a: attend(**a, pattern=pattern, kernel=kernel, context=context, frame_mask=frame_mask),
                 inputs(), visible(pattern, SHAPE, frame_mask))


@pytest.mark.parametrize(("groups", "context", "kernel", "pattern"), [
    pytest.param(g, c, k, p, id=f"{g}-{c}-{k}-{name(p)}",
                 marks=() if g > 1 and c in ("halo", "zigzag_ring", "ulysses_ring") else pytest.mark.full)
    for c, k, p in MASKED for g in (1, SHAPE[0])])
def test_external_tokens(context, kernel, pattern, groups):
    """Outside tokens next to the own ones, some of them hidden, and missing frames."""
    valid, outside = valid_frames(), extra(np.random.default_rng(2), BATCH, groups, 3, HEADS, DIM)
    assert_close(
        lambda q, k, v, extra_k, extra_v: attend(
            q, k, v, pattern=WithExtraKeys(inner=pattern), kernel=kernel, context=context,
            frame_valid=jnp.asarray(valid), extra_keys=ExtraKeys(extra_k, extra_v, outside.mask)),
        inputs() | {"extra_k": outside.k, "extra_v": outside.v}, visible(pattern, SHAPE) & key_mask(valid),
        extra_mask=outside.mask)


def test_outside_tokens_alone():
    """Nothing but outside tokens, different ones for every frame, in all contexts."""
    outside = extra(np.random.default_rng(2), BATCH, SHAPE[0], 3, HEADS, DIM)

    def run(q, k, v, extra_k, extra_v):
        outs = [attend(q, k, v, pattern=WithExtraKeys(inner=p, mode="replace"), kernel=kernel, context=context,
                       extra_keys=ExtraKeys(extra_k, extra_v, outside.mask)) for context, kernel, p in MASKED]
        return sum(outs) / len(outs)

    assert_close(run, inputs() | {"extra_k": outside.k, "extra_v": outside.v}, np.zeros((TOKENS, TOKENS), bool),
                 extra_mask=outside.mask)


@pytest.mark.parametrize(("context", "pattern"), [("all_gather", Temporal()), ("ulysses", Temporal()),
                                                  ("relayout", Temporal()), ("all_gather", Causal())], ids=str)
def test_bias_per_sequence(context, pattern):
    """One bias per sequence of the layout, as relative key vectors need, as without a context."""
    rows = SHAPE[0] if pattern.layout == "positions" else TOKENS
    shape = (BATCH * TOKENS // rows, HEADS, rows, rows)
    arrays = inputs() | {"bias": jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)}

    @functools.partial(jax.jit, static_argnames="context")
    def gradients(arrays, context):
        return jax.grad(lambda a: (attend(**a, pattern=pattern, kernel="xla", context=context) ** 3).sum())(arrays)

    expected = gradients(arrays, "none")
    for key, found in gradients(arrays, context).items():
        np.testing.assert_allclose(found, expected[key], atol=1e-4, err_msg=key)


@pytest.mark.parametrize(("context", "kernel", "pattern"), [
    ("ring", "xla", Causal()), ("halo", "gather", SparseCausal()),
    pytest.param("zigzag_ring", "chunked", Causal(), marks=pytest.mark.full)], ids=str)
def test_bfloat16_stays_close(context, kernel, pattern):
    """Within 0.08 for values of order 3: bfloat16 has 8 bits, and the result is a mean of such values."""
    arrays = {key: a.astype(jnp.bfloat16) for key, a in inputs().items()}

    @functools.partial(jax.jit, static_argnames=("kernel", "context"))
    def both(arrays, kernel, context):
        out, pull = jax.vjp(lambda a: attend(**a, pattern=pattern, kernel=kernel, context=context), arrays)
        return out, pull(jnp.ones_like(out))[0]

    out, gradients = both(arrays, kernel, context)
    expected, expected_gradients = both({key: a.astype(jnp.float32) for key, a in arrays.items()}, "xla", "none")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.08)
    for key, wanted in expected_gradients.items():
        assert gradients[key].dtype == jnp.bfloat16
        np.testing.assert_allclose(gradients[key].astype(jnp.float32), wanted, atol=0.03 * max(1, abs(wanted).max()))


@pytest.mark.parametrize(("context", "kernel"), [("halo", "gather"), ("ring", "xla"),
                                                 pytest.param("ulysses_ring", "chunked", marks=pytest.mark.full)])
def test_tokens_that_see_nothing_get_zeros(context, kernel):
    arrays, frame_valid = inputs(), jnp.zeros((BATCH, SHAPE[0]), bool).at[:, 6:].set(True)

    @jax.jit
    def both(arrays):
        out, pull = jax.vjp(lambda a: attend(**a, pattern=Causal(window=2), kernel=kernel, context=context,
                                             frame_valid=frame_valid), arrays)
        return out, pull(jnp.ones_like(out))[0]

    out, gradients = both(arrays)
    assert not out[:, :6].any() and out[:, 6:].any() and np.isfinite(out).all()
    for key in "qkv":
        assert np.isfinite(gradients[key]).all() and not gradients[key][:, :6].any()


@pytest.mark.full
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_drawn_shapes_and_patterns(data):
    """Any number of frames per device, odd sizes, appended images."""
    shape = tuple(4 * n if i == 0 else n for i, n in enumerate(data.draw(st.tuples(*[st.integers(1, 3)] * 3))))
    context, kernel, pattern = data.draw(st.sampled_from(ENTRIES))
    if context == "zigzag_ring":
        shape = (8, *shape[1:])
    images = data.draw(st.integers(0, shape[0] - 1))
    frame_mask = independent_frames_mask(shape[0] - images, images) if images else None
    assert_close(lambda **a: attend(**a, pattern=pattern, kernel=kernel, context=context, frame_mask=frame_mask),
                 inputs(1, shape, 2, 4, 2), visible(pattern, shape, frame_mask))
