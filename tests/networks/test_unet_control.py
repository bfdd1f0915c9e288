"""A ControlNet of the space-time U-Net: it starts with zeros, adds what its maps say, and each map by its factor."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import AUTOENCODER
from vdm_jax.attention.patterns import Full
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.diffusion.process import Process
from vdm_jax.networks import unet
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.weights.inflation import plan_inflation

MIXERS = (SelfAttention(pattern=Full(), head_dim=8),)
BASE = UNet(levels=(Level(channels=8, blocks=1, mixers=MIXERS), Level(channels=16, blocks=2)), middle=MIXERS, patch=2,
            temporal_patch=2, embedding_channels=16, groups=4, position_period=25.0)
NAMES = ("control", "control_1")
BOTH = dataclasses.replace(BASE, conditions=tuple(Input(name=name, width=3) for name in NAMES))
ONE = dataclasses.replace(BASE, conditions=BOTH.conditions[:1])
SHAPE = (2, 4, 8, 8, 3)


@pytest.fixture(scope="module")
def inputs(normal):
    return normal(0, *SHAPE), jnp.array([0.5, -1.0])


@pytest.fixture(scope="module")
def maps(normal):
    return {name: normal(i + 1, *SHAPE) for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def base(filled, inputs):
    return filled(SpaceTimeUNet(BASE), *inputs)


def call(spec, params, inputs, maps, **scalars):
    given = {name: jnp.full(2, value) if np.ndim(value) == 0 else jnp.asarray(value) for name, value in scalars.items()}
    return applied(spec)(params, *inputs, Conditioning(inputs=maps, scalars=given))


@functools.cache
def applied(spec):
    return jax.jit(lambda params, *inputs: SpaceTimeUNet(spec).apply({"params": params}, *inputs))


def test_it_begins_as_the_network_it_is_a_copy_of(base, inputs, maps):
    new = jax.jit(lambda key: SpaceTimeUNet(BOTH).init(key, *inputs, Conditioning(inputs=maps))["params"])(
        jax.random.key(0))
    plan = plan_inflation(BOTH, new, BASE, base)
    params = plan.apply(new, base)
    for name in ("stem", "positions", "down_0_0", "down_1_1", "downsample_0", "middle_in", "middle_out"):
        for net in NAMES:
            jax.tree.map(np.testing.assert_array_equal, params[f"control_net_{net}"][name], base[name])
    assert {name.split("/")[2].split("_")[0] for name in plan.new} == {"hint", "control"} and not plan.zero_initialised
    assert "up_0_0" not in params["control_net_control"] and "embedding" not in params["control_net_control"]
    plain = applied(BASE)(base, *inputs)
    np.testing.assert_allclose(call(BOTH, params, inputs, maps), plain, rtol=1e-5, atol=1e-6)


def test_maps_count_by_their_factors(base, filled, inputs, maps):
    """Of random branches: none with a factor of 0, to the last bit; the other with a factor of 1; both in between."""
    params = filled(SpaceTimeUNet(BOTH), *inputs, Conditioning(inputs=maps)) | base
    plain = applied(BASE)(base, *inputs)
    np.testing.assert_array_equal(call(BOTH, params, inputs, maps, control_scale=0.0, control_1_scale=0.0), plain)
    alone = call(ONE, {name: value for name, value in params.items() if name != "control_net_control_1"}, inputs,
                 {"control": maps["control"]})
    second = call(BOTH, params, inputs, maps, control_scale=1.0, control_1_scale=0.0)
    np.testing.assert_allclose(second, alone, rtol=1e-5, atol=1e-6)
    both, other = call(BOTH, params, inputs, maps), call(BOTH, params, inputs, maps | {
        "control": maps["control"][:, ::-1]})
    assert min(np.abs(alone - plain).mean(), np.abs(both - alone).mean(), np.abs(both - other).mean()) > 0.01
    half = call(BOTH, params, inputs, maps, control_scale=[0.0, 1.0], control_1_scale=0.0)
    np.testing.assert_allclose(half[0], plain[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half[1], alone[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sharded_axis", ["frames", "height"])
def test_a_spread_clip_has_the_control_of_the_clip(sharded_axis, filled, inputs, maps, monkeypatch):
    """The branch is spread as the network is, from the patches of its map on."""
    spec, spread = dataclasses.replace(ONE, sharded_axis=sharded_axis), []
    given = {"control": maps["control"]}
    params = filled(SpaceTimeUNet(spec), *inputs, Conditioning(inputs=given))
    expected = call(spec, params, inputs, given)
    with monkeypatch.context() as patch:
        real = unet.shard_along
        patch.setattr(unet, "shard_along", lambda x, axis: spread.append((x.shape, axis)) or real(x, axis))
        with jax.set_mesh(make_mesh(MeshSpec(data=2, context=2), jax.devices()[:4])):
            found = call(spec, params, inputs, given)
    np.testing.assert_allclose(found, expected, atol=2.5e-5)
    assert spread[:3] == [((2, 2, 4, 4, channels), sharded_axis) for channels in (24, 8, 8)]  # map, stem, their sum


def test_a_map_acts_where_it_is(filled, inputs, maps):
    """Without attention, and a stem of one patch, a change in one patch of the map changes that one's surroundings."""
    spec = dataclasses.replace(ONE, levels=(Level(channels=8, blocks=1, kernel=1),), middle=(), norm_over="frame",
                               stem_kernel=1, out_kernel=1, groups=1)
    z, level = jnp.zeros((1, 2, 16, 16, 3)), jnp.zeros(1)
    blank = jnp.zeros((1, 2, 16, 16, 3))
    params = filled(SpaceTimeUNet(spec), z, level, Conditioning(inputs={"control": blank}))
    run = jax.jit(lambda hint: SpaceTimeUNet(spec).apply({"params": params}, z, level, Conditioning(
        inputs={"control": hint})))
    change = np.abs(run(blank.at[0, :, 12:14, 12:14].set(1)) - run(blank)).sum((0, 1, 4))
    assert change[12:14, 12:14].mean() > 3 * change[:8, :8].mean()


def test_what_cannot_be(filled, inputs, maps):
    with refused("UNet.conditions", "'control' enters as residuals", "resample_order='before'", "permitted: "):
        dataclasses.replace(BASE, resample_order="before", middle=(), conditions=ONE.conditions)
    with refused("UNet.conditions", "'sparse_control' enters as residuals"):
        dataclasses.replace(BASE, conditions=(Input(name="sparse_control", width=4),))
    with refused("unet_inputs.check_inputs", "map 'control' of shape (2, 4, 4, 4, 3)", "permitted: (2, 4, 8, 8, 3)"):
        filled(SpaceTimeUNet(ONE), *inputs, Conditioning(inputs={"control": maps["control"][:, :, :4, :4]}))


def test_in_latents_a_map_enters_as_channels_only():
    def stage(enters):
        network = dataclasses.replace(BASE, out_channels=4, conditions=(Input(name="control", width=3, enters=enters),))
        return Stage(name="base", video=VideoSpec(frames=4, height=16, width=16), process=Process(), network=network,
                     latent=Latent(autoencoder=AUTOENCODER), sampling=Sampling(threshold=None))

    assert stage("channels").network.stacked["control"] == 3
    with refused("Stage.network.conditions", "=['control'] as residuals", "permitted: Input.enters='channels'",
                 "LatentNetwork"):
        stage(None)
