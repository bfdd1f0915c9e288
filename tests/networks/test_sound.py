"""Tokens of sound, and networks that hear."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.texts import text_conditioning
from tests.generation.conftest import base_stage, random_params
from tests.refusals import refused
from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.sound import SoundTokens, grouped
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment


def test_windows_are_means_of_neighbours_and_the_last_token_is_of_all_frames():
    module, sound = SoundTokens(features=6), jax.random.normal(jax.random.key(0), (2, 9, 8))
    params = module.init(jax.random.key(1), sound)
    found = np.asarray(module.apply(params, sound))
    assert found.shape == (2, 9, 5, 6)
    alone = found[:, :, 0]
    np.testing.assert_allclose(found[:, 4, 1], alone[:, 4:6].mean(1), atol=1e-5)
    np.testing.assert_allclose(found[:, 4, 2], alone[:, 3:7].mean(1), atol=1e-5)
    np.testing.assert_allclose(found[:, 4, 3], alone[:, 1:9].mean(1), atol=1e-5)
    np.testing.assert_allclose(found[:, 8, 3], alone[:, 5:9].mean(1), atol=1e-5)  # of those that there are
    np.testing.assert_array_equal(found[:, 0, 4], found[:, 8, 4])
    assert (found[:, :, 4].min() >= alone.min()) and np.abs(found[0, 0, 4] - alone[0, 0]).max() > 1e-3
    shapes = jax.eval_shape(SoundTokens(1024).init, jax.random.key(0), jnp.zeros((1, 24, 9216)))["params"]
    assert [shapes[name]["kernel"].shape for name in ("hidden_0", "hidden_1", "out")] == [
        (9216, 2304), (2304, 2304), (2304, 1024)]  # as published


def test_tokens_of_all_frames_and_of_each_are_joined():
    joined = grouped(jnp.zeros((2, 1, 3, 4)), jnp.ones((2, 5, 2, 4)))
    assert joined.shape == (2, 5, 5, 4) and (joined[:, :, :3] == 0).all() and (joined[:, :, 3:] == 1).all()


@pytest.fixture(scope="module")
def hearing():
    stage = base_stage()
    network = dataclasses.replace(stage.network, conditions=(Input(name="sound", width=7),))
    return dataclasses.replace(stage, network=network, training=Training(), sampling=Sampling(steps=1, guidance=1.0))


def test_each_frame_hears_its_own_sound_and_text_stays(hearing):
    """Changing the sound of frame 1 changes the window tokens of frame 0 too: the network here attends over all
    frames, so only silence of both is compared."""
    params, module = random_params(hearing, 0), network_module(hearing.network)
    given = text_conditioning(jnp.array([[[2, 6, 5, 4, 0, 0]]])).replace(scalars={"fps": jnp.full(1, 4.0)})
    z, rng = jnp.ones((1, 2, 8, 8, 3)), np.random.default_rng(0)

    @jax.jit
    def apply(sound, given):
        return module.apply({"params": params}, z, jnp.zeros(1), given.replace(inputs={"sound": sound}))

    sound = jnp.asarray(rng.normal(size=(1, 2, 7)), jnp.float32)
    heard, other = apply(sound, given), apply(-sound, given)
    assert np.abs(heard - other).max() > 1e-2
    assert np.abs(heard - apply(sound, given.without_text())).max() > 1e-2
    exchanged = apply(sound[:, ::-1], given)
    assert np.abs(heard - exchanged).max() > 1e-2  # which frame hears what matters
    null = CONDITIONS["sound"].null(Conditioning(inputs={"sound": sound}), jnp.array([True]))
    assert (null["inputs"]["sound"] == 0).all()
    with refused("inputs.check_entries", "sound", "(1, 2, 7)"):
        module.apply({"params": params}, z, jnp.zeros(1), given.replace(inputs={"sound": sound[:, :1]}))
    with refused("Input.enters", "permitted: tokens"):
        Input(name="sound", width=7, enters="channels")


def test_the_generator_takes_the_sound_of_each_frame(hearing):
    generator = Generator(Experiment(name="tiny", stages=(hearing,), data=None), {"base": random_params(hearing, 0)})
    sound = np.random.default_rng(0).normal(size=(1, 2, 7)).astype(np.float32)
    one = generator(["a red three"], sound=sound).videos
    assert np.abs(one.astype(int) - generator(["a red three"], sound=-sound).videos).max() > 2
    with refused("inputs.InputCondition.of_request", "sound", "[1, 2, 3]", "[1, frames, 7]"):
        generator(["a red three"], sound=sound[..., :3])
    with refused("arrays.subsample_frames", "frames=2"):
        generator(["a red three"], sound=sound[:, :1])


def test_latent_networks_hear_too():
    unet = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,),
                      token_channels=6, groups=4)
    network = LatentNetwork(unet=unet, conditions=(Input(name="sound", width=5),))
    module, z, level = network_module(network), jnp.ones((1, 3, 4, 4, 4)), jnp.zeros(1)
    sound = jax.random.normal(jax.random.key(0), (1, 3, 5))
    params = module.init(jax.random.key(1), z, level, Conditioning(inputs={"sound": sound}))["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), params)
    found = [module.apply({"params": params}, z, level, Conditioning(inputs={"sound": s})) for s in (sound, -sound)]
    assert np.abs(found[0] - found[1]).max() > 1e-3

    def exchanging(function, arguments, options, context):  # the tokens of the first and the last frame
        tokens = function(*arguments, **options)
        of_sound = isinstance(context.module, SoundTokens) and context.method_name == "__call__"
        return tokens[:, ::-1] if of_sound else tokens

    with nn.intercept_methods(exchanging):
        exchanged = module.apply({"params": params}, z, level, Conditioning(inputs={"sound": sound}))
    assert np.abs(found[0] - found[0][:, ::-1]).max() > 1e-3
    np.testing.assert_allclose(exchanged, found[0][:, ::-1], atol=1e-5)  # no layer mixes frames
