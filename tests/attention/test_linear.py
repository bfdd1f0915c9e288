"""Linear attention against its definition, pair by pair; on devices that share frames and heads; its FLOPs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.attention.oracle import name, visible
from tests.refusals import refused
from vdm_jax.attention import (
    BlockCausal,
    Causal,
    FirstFrames,
    Full,
    LocalWindow,
    PerHead,
    SparseCausal,
    Spatial,
    Temporal,
)
from vdm_jax.attention.linear import linear_attend, linear_flops
from vdm_jax.attention.patterns import independent_frames_mask
from vdm_jax.attention.positions import rotary
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.flops import count

SHAPE, HEADS, DIM = (4, 2, 3), 2, 8
TURN = partial(rotary, axes="thw")
WHOLE = (Full(), Causal(), Causal(window=2), BlockCausal(block=2), SparseCausal(own=True), FirstFrames(), Spatial())


def inputs(batch=2):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((batch, *SHAPE, HEADS, DIM)), jnp.float32) for _ in range(3)]


def by_pairs(q, k, v, seen, turn):
    """The definition in float64: every weight of every pair."""
    def flat(a):
        return np.asarray(a, np.float64).reshape(len(a), -1, HEADS, DIM)

    asking, keys = np.maximum(q, 0), np.maximum(k, 0)
    above = np.einsum("bikd,bjkd->bijk", flat(turn(asking)), flat(turn(keys))) * seen[..., None]
    below = (np.einsum("bikd,bjkd->bijk", flat(asking), flat(keys)) * seen[..., None]).sum(2)
    return (np.einsum("bijk,bjkd->bikd", above, flat(v)) / (below + 1e-15)[..., None]).reshape(v.shape)


@pytest.mark.parametrize("pattern", WHOLE, ids=name)
@pytest.mark.parametrize("turn", [TURN, jnp.asarray], ids=["rotary", "none"])
def test_it_is_its_definition(pattern, turn):
    q, k, v = inputs()
    got = linear_attend(q, k, v, pattern=pattern, turn=turn)
    np.testing.assert_allclose(got, by_pairs(q, k, v, visible(pattern, SHAPE)[None], turn), atol=1e-4)


@pytest.mark.parametrize("pattern", [Full(), Causal()], ids=name)
def test_frames_that_do_not_exist_and_images_are_not_seen(pattern):
    q, k, v = inputs()
    valid = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    seen = visible(pattern, SHAPE)[None] & np.repeat(valid, 6, axis=1)[:, None]
    got = linear_attend(q, k, v, pattern=pattern, turn=TURN, frame_valid=jnp.asarray(valid))
    np.testing.assert_allclose(got, by_pairs(q, k, v, seen, TURN), atol=1e-4)
    mask = independent_frames_mask(3, 1)
    got = linear_attend(q, k, v, pattern=pattern, turn=TURN, frame_mask=mask)
    np.testing.assert_allclose(got, by_pairs(q, k, v, visible(pattern, SHAPE, mask)[None], TURN), atol=1e-4)


def test_a_token_whose_features_meet_none_gets_zeros_and_finite_gradients():
    q, k, v = inputs()
    out, pull = jax.vjp(lambda q: linear_attend(q, k, v, pattern=Full()), q.at[:, 0].set(-1.0))
    assert not out[:, 0].any() and out[:, 1:].any()
    assert np.isfinite(pull(jnp.ones_like(out))[0]).all()


def test_features_that_meet_only_when_they_are_turned_give_zeros():
    """One frame of one token: the query's positive channel is the pair of the key's, which positions bring together."""
    q = jnp.zeros((1, 2, 1, 1, 1, 4)).at[..., 0].set(1.0)
    k = jnp.zeros((1, 2, 1, 1, 1, 4)).at[..., 2].set(1.0)
    turn = partial(rotary, axes="t")
    assert np.abs(np.sum(np.asarray(turn(q)[:, 1] * turn(k)[:, 0]))) > 0.1
    out, pull = jax.vjp(lambda q: linear_attend(q, k, jnp.ones_like(q), pattern=Full(), turn=turn), q)
    assert not out.any() and np.isfinite(pull(jnp.ones_like(out))[0]).all()


@pytest.mark.parametrize("pattern", [Full(), Causal()], ids=name)
def test_devices_that_share_frames_and_heads_change_nothing(pattern):
    arrays, cotangent = inputs(), inputs()[0]
    mesh = make_mesh(MeshSpec(data=2, tensor=2, context=2))

    def run(q, k, v):
        out, pull = jax.vjp(lambda *a: linear_attend(*a, pattern=pattern, turn=TURN), q, k, v)
        return out, *pull(cotangent)

    expected = jax.jit(run)(*arrays)
    with jax.set_mesh(mesh):
        found = jax.jit(run)(*jax.device_put(arrays, NamedSharding(mesh, P("data", "context", None, None, "tensor"))))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("pattern", [Full(), Causal()], ids=name)
def test_flops_are_those_of_the_program_but_for_the_denominator(pattern):
    q, k, v = inputs(batch=1)
    dense, _ = count(jax.make_jaxpr(lambda *a: linear_attend(*a, pattern=pattern))(q, k, v).jaxpr)
    frames, tokens = SHAPE[0], int(np.prod(SHAPE))
    denominator = HEADS * DIM * (2 * tokens + (0 if pattern == Full() else 2 * frames**2))
    assert dense == linear_flops(pattern, SHAPE, HEADS, DIM) + denominator


@pytest.mark.parametrize("pattern", [Temporal(), LocalWindow(height=1, width=1), PerHead()], ids=name)
def test_patterns_of_a_part_of_a_frame_are_refused(pattern):
    with refused("linear.pattern", "permitted: patterns that relate whole frames"):
        linear_attend(*inputs(), pattern=pattern)
