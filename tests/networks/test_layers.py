"""Layers against their definitions: folded convolutions against 3-D ones, norms computed directly, exact inverses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vdm_jax.networks.layers import (
    Convolution,
    GroupNorm,
    add_residual,
    convolve,
    depth_to_space,
    mean_pool,
    nearest,
    space_to_depth,
)
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

ONE, TWO = (1, 1), (2, 2)  # strides
CONVOLUTIONS = (  # kernel, strides
    *(((1, 1, 1), stride) for stride in (ONE, TWO)),
    *(((1, 3, 3), stride) for stride in (ONE, TWO, (1, 2))),
    *(((3, 1, 1), stride) for stride in (ONE, TWO)),
    *(((3, 3, 3), stride) for stride in (ONE, TWO)),
    *((size, ONE) for size in ((2, 1, 1), (4, 1, 1), (1, 2, 2), (4, 2, 3), (1, 1, 3), (1, 7, 7))),
    *((size, TWO) for size in ((1, 4, 4), (2, 2, 2))),
)


def convolution_3d(x, kernel, strides):
    """The definition: one 3-D convolution, padded (k - 1) // 2 before and k // 2 after."""
    padding = [((k - 1) // 2, k // 2) for k in kernel.shape[:3]]
    return lax.conv_general_dilated(x, kernel, (1, *strides), padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def values_and_gradients(function, *inputs):
    """Output and gradients for a fixed random cotangent, in one compiled function."""

    def run(*inputs):
        out, pull = jax.vjp(function, *inputs)
        return out, pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    with jax.default_matmul_precision("highest"):
        return jax.jit(run)(*inputs)


@pytest.mark.parametrize(("size", "strides"), CONVOLUTIONS, ids=str)
def test_convolve_equals_a_3d_convolution(size, strides, normal):
    x, kernel = normal(0, 2, 5, 6, 8, 3), normal(1, *size, 3, 4)
    out, grads = values_and_gradients(lambda *a: convolve(*a, strides), x, kernel)
    expected, expected_grads = values_and_gradients(lambda *a: convolution_3d(*a, strides), x, kernel)
    assert out.shape == (2, 5, 6 // strides[0], 8 // strides[1], 4)
    np.testing.assert_allclose(out, expected, atol=3e-5)
    for name, a, b in zip(("input", "kernel"), grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=f"gradient of {name}")


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("size", [(3, 1, 1), (3, 3, 3), (4, 1, 1)], ids=str)
def test_convolve_of_fewer_frames_than_its_kernel(size, frames, normal):
    x, kernel = normal(0, 1, frames, 4, 4, 2), normal(1, *size, 2, 3)
    np.testing.assert_allclose(convolve(x, kernel), convolution_3d(x, kernel, (1, 1)), atol=3e-5)


@pytest.mark.parametrize("size", [(3, 1, 1), (3, 3, 3)], ids=str)
def test_a_causal_convolution_sees_no_later_frames(size, normal):
    """It is the other one of a clip that comes a frame later."""
    x, kernel = normal(0, 1, 5, 4, 4, 2), normal(1, *size, 2, 3)
    later = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    np.testing.assert_allclose(convolve(x, kernel, causal=True), convolve(later, kernel)[:, :-1], atol=3e-5)


def gradient_convolutions(x, kernel):
    """How many convolutions the gradient with respect to the kernel takes, next to the forward pass."""
    program = jax.make_jaxpr(jax.grad(lambda k: jnp.sum(convolve(x, k) ** 2)))(kernel)
    return str(program).count("conv_general_dilated[") - 1


@pytest.mark.parametrize("size", [(1, 3, 3), (1, 2, 5), (3, 3, 3)], ids=str)
def test_kernel_gradient_in_pieces_of_rows(size, normal, monkeypatch):
    x, kernel = normal(0, 2, 3, 7, 6, 3), normal(1, *size, 3, 4)  # 36 positions a row: pieces of 2, the last of 1
    expected, expected_grads = values_and_gradients(lambda *a: convolution_3d(*a, ONE), x, kernel)
    monkeypatch.setattr("vdm_jax.networks.layers.PIECE", 80)
    assert gradient_convolutions(x, kernel) == 1  # a small frame stays whole
    monkeypatch.setattr("vdm_jax.networks.layers.WINDOW", 42)
    assert gradient_convolutions(x, kernel) == 4
    out, grads = values_and_gradients(convolve, x, kernel)
    np.testing.assert_allclose(out, expected, atol=3e-5)
    for name, a, b in zip(("input", "kernel"), grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=f"gradient of {name}")


def test_kernel_gradient_in_pieces_has_tangents_batches_and_meshes(normal, monkeypatch):
    x, kernel = normal(0, 2, 3, 7, 6, 3), normal(1, 1, 3, 3, 3, 4)

    def products(function):  # second derivatives, forward over reverse, over a batch of directions
        def along(direction):
            gradient = jax.grad(lambda k: jnp.sum(function(x, k) ** 3))
            return jax.jvp(gradient, (kernel,), (direction,))[1]

        return jax.vmap(along)(jnp.stack([normal(2, *kernel.shape), normal(3, *kernel.shape)]))

    with jax.default_matmul_precision("highest"):
        expected = products(lambda x, k: convolution_3d(x, k, ONE))
        monkeypatch.setattr("vdm_jax.networks.layers.PIECE", 80)
        monkeypatch.setattr("vdm_jax.networks.layers.WINDOW", 42)
        np.testing.assert_allclose(products(convolve), expected, rtol=2e-4, atol=1e-3 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("mesh", "pieces"), [(MeshSpec(data=2, fsdp=4), 1), (MeshSpec(data=2, tensor=4), 3),
                                              (MeshSpec(data=2, context=4), 1)])
def test_pieces_are_measured_per_device(mesh, pieces, normal, monkeypatch):
    x, kernel = normal(0, 8, 3, 12, 6, 3), normal(1, 1, 3, 3, 3, 4)  # 144 positions a row, of all devices
    monkeypatch.setattr("vdm_jax.networks.layers.PIECE", 300)
    monkeypatch.setattr("vdm_jax.networks.layers.WINDOW", 72)
    with jax.set_mesh(make_mesh(mesh)):
        assert gradient_convolutions(x, kernel) == pieces
        found = jax.jit(jax.grad(lambda k: jnp.sum(convolve(x, k) ** 2)))(kernel)
    expected = jax.grad(lambda k: jnp.sum(convolution_3d(x, k, ONE) ** 2))(kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_convolution_keeps_the_canonical_kernel_and_adds_its_bias(filled, normal):
    x, module = normal(0, 1, 3, 4, 4, 2), Convolution(5, (3, 1, 3), strides=(2, 2))
    params = filled(module, x)
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 1, 3, 2, 5), "bias": (5,)}
    expected = convolution_3d(x, params["kernel"], (2, 2)) + params["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)
    low = Convolution(5, (3, 1, 3), strides=(2, 2), dtype=jnp.bfloat16).apply({"params": params}, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), expected, atol=0.1)


def group_norm(x, groups, over, scale, bias, modulation):
    """The definition in float64: zero mean and unit variance per group, then affine, then modulation."""
    x = np.asarray(x, np.float64)
    split = x.reshape(*x.shape[:-1], groups, -1)
    axes = (2, 3, 5) if over == "frame" else (1, 2, 3, 5)
    y = (split - split.mean(axes, keepdims=True)) / np.sqrt(split.var(axes, keepdims=True) + 1e-5)
    y = y.reshape(x.shape) * np.asarray(scale) + np.asarray(bias)
    return y if modulation is None else y * (1 + np.asarray(modulation[0])) + np.asarray(modulation[1])


@pytest.mark.parametrize("over", ["frame", "clip"])
@pytest.mark.parametrize(("modulated", "most", "channels", "groups"), [
    (None, 8, 12, 6), (1, 8, 16, 8), (3, 4, 7, 1), (3, 8, 5, 5)])
def test_group_norm_equals_its_definition(over, modulated, most, channels, groups, filled, normal):
    """`groups` is the largest divisor of the channels up to `most`; modulation is none, per clip or per frame."""
    frames = np.arange(1, 4)[:, None, None, None]  # frames of different scale and mean
    x = frames * normal(0, 2, 3, 4, 5, channels) + 2 * frames
    modulation = None if modulated is None else tuple(normal(1, 2, 2, modulated, 1, 1, channels))
    module = GroupNorm(most, over)
    params = filled(module, x)
    out = jax.jit(module.apply)({"params": params}, x, modulation)
    np.testing.assert_allclose(out, group_norm(x, groups, over, **params, modulation=modulation), atol=2e-4)


def test_group_norm_of_low_precision_has_float32_statistics(normal):
    x = (normal(0, 1, 2, 16, 16, 8) + 20).astype(jnp.bfloat16)
    module = GroupNorm(4)
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    out = module.apply({"params": params}, x)
    assert out.dtype == jnp.bfloat16
    expected = group_norm(x, 4, "frame", **params, modulation=None)
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=0.03)


def test_group_norm_of_constants_is_finite():
    x = jnp.full((1, 2, 3, 3, 4), 1e3)
    module = GroupNorm(2)
    params = {"scale": jnp.ones(4), "bias": jnp.ones(4)}
    value, grads = jax.jit(jax.value_and_grad(lambda x: module.apply({"params": params}, x).sum()))(x)
    assert np.isfinite(value) and np.isfinite(grads).all()


def test_space_to_depth_is_undone_and_orders_by_row_column_channel(normal):
    x = normal(0, 2, 3, 4, 6, 3)
    folded = space_to_depth(x, 2)
    assert folded.shape == (2, 3, 2, 3, 12)
    np.testing.assert_array_equal(folded[0, 1, 1, 2, 3:6], x[0, 1, 2, 5])  # row 0, column 1 of the patch
    np.testing.assert_array_equal(depth_to_space(folded, 2), x)


def test_pooling_and_repetition(normal):
    x = normal(0, 1, 2, 4, 6, 3)
    np.testing.assert_allclose(mean_pool(x, (2, 3))[0, 1, 1, 0], x[0, 1, 2:4, :3].mean((0, 1)), atol=1e-6)
    large = nearest(x, (2, 3))
    np.testing.assert_array_equal(large, np.repeat(np.repeat(x, 2, axis=2), 3, axis=3))
    np.testing.assert_allclose(mean_pool(large, (2, 3)), x, atol=1e-6)


def test_add_residual_adds_and_differentiates(normal):
    x, y = normal(0, 3), normal(1, 3)
    value, grads = jax.value_and_grad(lambda a, b: (add_residual(a, b) ** 2).sum(), argnums=(0, 1))(x, y)
    np.testing.assert_allclose(value, ((x + y) ** 2).sum(), rtol=1e-6)
    for grad in grads:
        np.testing.assert_allclose(grad, 2 * (x + y), rtol=1e-6)
