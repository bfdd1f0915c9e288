"""Rematerialisation: the same gradients whatever is recomputed, and what is really kept."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Temporal
from vdm_jax.networks.config import Level, SelfAttention, TemporalConvolution, UNet
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

# With dropout, so that the recomputation must draw the same mask again.
LEVEL = Level(channels=8, blocks=1, dropout=0.3, mixers=(
    TemporalConvolution(), SelfAttention(pattern=Temporal(), head_dim=8, kernel="xla")))
PLAIN = UNet(levels=(LEVEL,), embedding_channels=16, groups=4)
POLICIES = ("dots", "full", "offload")


def gradient(remat, level, z):
    """The function of parameters."""
    module = SpaceTimeUNet(dataclasses.replace(PLAIN, remat=remat))

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        return (module.apply({"params": params}, z, level, train=True, rngs=rngs) ** 2).mean()

    return jax.grad(loss)


@pytest.fixture(scope="module")
def case(filled, normal):
    """Parameters, and `gradient` with its inputs bound."""
    z, level = normal(0, 2, 2, 4, 4, 3), jnp.array([0.5, 1.0])
    return filled(SpaceTimeUNet(PLAIN), z, level), functools.partial(gradient, level=level, z=z)


@pytest.fixture(scope="module")
def kept(case):
    params, grad = case
    return jax.jit(grad("none"))(params)


@pytest.mark.parametrize("remat", POLICIES)
def test_remat_changes_neither_parameters_nor_gradients(remat, case, kept):
    params, grad = case
    recomputed = jax.jit(grad(remat))(params)
    assert min(np.abs(g).max() for g in jax.tree.leaves(kept)) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, recomputed)


def test_initial_parameters_are_traced_without_remat(case):
    """Which takes most of the time of tracing them, and nothing differentiates; a call of the network has it."""
    module, z, level = SpaceTimeUNet(dataclasses.replace(PLAIN, remat="full")), jnp.zeros((1, 2, 4, 4, 3)), jnp.ones(1)
    initial = jax.make_jaxpr(lambda key: module.init(key, z, level)["params"], return_shape=True)
    program, shapes = initial(jax.random.key(0))
    assert "remat" not in str(program)
    assert "remat" in str(jax.make_jaxpr(module.apply)({"params": shapes}, z, level))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, case[0])


@pytest.mark.parametrize("remat", [pytest.param("dots", marks=pytest.mark.full),
                                   pytest.param("full", marks=pytest.mark.full), "offload"])
def test_remat_on_a_mesh_that_spreads_clips(remat, case, kept):
    """Policies reach into the convolutions of spread videos."""
    params, grad = case
    with jax.set_mesh(make_mesh(MeshSpec(data=1, context=2), jax.devices()[:2])):
        sharded_axis = jax.jit(grad(remat))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, sharded_axis)


def test_what_is_recomputed(case):
    """Convolutions in the program: those of one forward pass and two of each in the backward pass, or more."""
    params, grad = case
    counts = {remat: jax.jit(grad(remat)).lower(params).as_text().count("stablehlo.convolution(")
              for remat in ("none", *POLICIES)}
    assert counts["none"] == counts["dots"] < counts["full"] == counts["offload"]


def test_only_offload_keeps_block_inputs_in_host_memory(case):
    params, grad = case
    texts = {remat: str(jax.make_jaxpr(grad(remat))(params)) for remat in POLICIES}
    moved = {remat: text.count("device_put") for remat, text in texts.items()}
    blocks = 5  # one down, two in the middle, two up
    assert moved["offload"] - moved["full"] == 2 * blocks  # there and back
    assert moved["dots"] == moved["full"]


def test_unknown_policies_are_refused():
    with refused("UNet.remat", "UNet.remat='everything'"):
        dataclasses.replace(PLAIN, remat="everything")
    with refused("UNet.remat", "UNet.remat=True"):
        dataclasses.replace(PLAIN, remat=True)
