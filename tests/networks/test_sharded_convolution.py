"""Convolutions of videos whose frames or rows are spread over devices: same numbers, halos, and nothing gathered."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.refusals import refused
from vdm_jax.networks.layers import convolve
from vdm_jax.networks.sharded_convolution import sharded_convolve
from vdm_jax.parallel.collectives import collectives
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

SPECS = {"frames": P("data", "context"), "height": P("data", None, "context")}
SIZES = {"data": 2, "context": 4}


def gradient(kernel, strides, axis):
    """Compiled value and gradient of a function of a convolution, and its program."""
    mesh = make_mesh(MeshSpec(**SIZES))
    video = NamedSharding(mesh, SPECS[axis])

    def loss(x, kernel):
        y = sharded_convolve(convolve, x, kernel, strides, axis)
        return jnp.sin(jax.lax.with_sharding_constraint(y, video)).sum()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), in_shardings=(video, NamedSharding(mesh, P())))
        return step.lower(jax.ShapeDtypeStruct((4, 8, 16, 4, 3), jnp.float32), kernel).compile()


def test_a_spread_causal_convolution(normal):
    x, kernel = normal(0, 4, 8, 16, 4, 3), normal(1, 3, 1, 1, 3, 5)
    function = functools.partial(sharded_convolve, convolve, strides=(1, 1), axis="frames", causal=True)
    mesh = make_mesh(MeshSpec(**SIZES))
    with jax.set_mesh(mesh):
        got = jax.jit(function, in_shardings=(NamedSharding(mesh, SPECS["frames"]), None))(x, kernel)
    np.testing.assert_allclose(got, convolve(x, kernel, causal=True), atol=1e-5)


@pytest.mark.parametrize("axis", ["frames", "height"])
@pytest.mark.parametrize(("size", "strides", "permutes"), [
    ((1, 3, 3), (1, 1), {"height": 4}),
    ((3, 1, 1), (1, 1), {"frames": 4}),
    ((3, 3, 3), (1, 1), {"frames": 4, "height": 4}),
    ((1, 3, 3), (2, 2), {"height": 2}),  # from above only
    ((1, 5, 5), (2, 2), {"height": 4}),
    ((1, 2, 2), (1, 1), {"height": 2}),  # from below only
    ((3, 1, 1), (2, 1), {"frames": 4}),
])
def test_a_spread_convolution_exchanges_halos_and_nothing_else(size, strides, permutes, axis, normal):
    x, kernel = normal(0, 4, 8, 16, 4, 3), normal(1, *size, 3, 5)
    step = gradient(kernel, strides, axis)
    got = step(*(jax.device_put(a, s) for a, s in zip((x, kernel), step.input_shardings[0], strict=True)))
    plain = jax.value_and_grad(lambda x, k: jnp.sin(convolve(x, k, strides)).sum(), argnums=(0, 1))
    expected = jax.jit(plain)(x, kernel)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
    found = collectives(step.as_text())
    assert set(found) <= {"collective-permute", "all-reduce"}  # sums of loss and kernel gradient
    assert found.get("collective-permute", {}).get("count", 0) == permutes.get(axis, 0)


def test_channels_stay_with_the_compiler(normal):
    """Output features over `tensor`, rows over `context`: still only halos in the forward pass."""
    mesh = make_mesh(MeshSpec(data=2, tensor=2, context=2))
    specs = P("data", None, "context"), P(None, None, None, None, "tensor")
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    x, kernel = normal(0, 2, 2, 8, 4, 3), normal(1, 1, 3, 3, 3, 4)
    function = functools.partial(sharded_convolve, convolve, strides=(1, 1), axis="height")
    with jax.set_mesh(mesh):
        step = jax.jit(function, in_shardings=shardings).lower(x, kernel).compile()
    got = step(*(jax.device_put(a, s) for a, s in zip((x, kernel), shardings, strict=True)))
    np.testing.assert_allclose(got, convolve(x, kernel), atol=1e-5)
    assert set(collectives(step.as_text())) == {"collective-permute"}


@pytest.mark.parametrize(("shape", "size", "strides", "message"), [
    ((1, 8, 4), (1, 5, 5), (1, 1), "height of 4 over 4 devices of mesh axis 'context' leaves 1 to each, for a "
                                   "convolution of size 5 and stride 1; permitted: at least 2 each, in multiples of 1"),
    ((1, 8, 12), (1, 3, 3), (2, 2), "height of 12 over 4 devices of mesh axis 'context' leaves 3 to each, for a "
                                    "convolution of size 3 and stride 2; permitted: at least 2 each, in multiples of "
                                    "2"),
])
def test_parts_that_are_too_small(shape, size, strides, message):
    x, kernel = jnp.zeros((*shape, 4, 3)), jnp.zeros((*size, 3, 3))
    with jax.set_mesh(make_mesh(MeshSpec(**SIZES))), refused("sharded_convolution.sharded_convolve") as error:
        jax.eval_shape(lambda x, k: sharded_convolve(convolve, x, k, strides, "height"), x, kernel)
    assert str(error.value).startswith(message)


def test_without_a_mesh_and_where_the_axis_does_not_divide_it_is_the_convolution_itself(normal):
    x, kernel = normal(0, 1, 3, 6, 4, 3), normal(1, 3, 3, 3, 3, 2)
    expected = jax.jit(convolve)(x, kernel)
    function = functools.partial(sharded_convolve, convolve, strides=(1, 1), axis="frames")
    np.testing.assert_array_equal(jax.jit(function)(x, kernel), expected)
    with jax.set_mesh(make_mesh(MeshSpec(**SIZES))):
        got = jax.jit(function)(x, kernel)
    np.testing.assert_allclose(got, expected, atol=1e-5)
