"""T2I-Adapters: sizes as published, features made once, and a stage that learns one next to a frozen U-Net."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.test_control_net import STAGE, UNET
from tests.refusals import refused
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.generation.one_stage import precomputed
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.t2i_adapter import T2I_ADAPTER_SD1, T2IAdapter, T2IAdapterNetwork, halved
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.options import GuidanceTerm, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.training.init_from import planned
from vdm_jax.training.state import create_state
from vdm_jax.training.step import compile_train_step
from vdm_jax.weights import model_kinds

ADAPTER = T2IAdapter(widths=(8, 8), blocks=1, factor=1)
NETWORK = dataclasses.replace(STAGE.network, conditions=(Input(name="edges", width=3),), control_nets=(ADAPTER,))
ADAPTED = dataclasses.replace(STAGE, network=NETWORK, training=Training(
    batch_size=4, learning_rate=3e-2, warmup_steps=1, trainable=("^/control_net_",), text_dropout=0.0))
BASE = dataclasses.replace(NETWORK, conditions=(), control_nets=())


@pytest.mark.parametrize(("config", "count"), [
    (T2I_ADAPTER_SD1, 77_369_280), (dataclasses.replace(T2I_ADAPTER_SD1, hint_channels=1), 77_000_640)])
def test_sizes_are_those_published(config, count):
    assert sum(leaf.size for leaf in model_kinds.shapes(config).values()) == count


def test_features_have_the_sizes_of_the_levels_of_odd_ones_too():
    config = T2IAdapter(widths=(8, 16), blocks=2, factor=2)
    found = jax.eval_shape(lambda: T2IAdapterNetwork(config).init_with_output(
        jax.random.key(0), jnp.zeros((1, 3, 10, 14, 3)))[0])
    assert [x.shape for x in found] == [(1, 3, 5, 7, 8), (1, 3, 3, 4, 16)]
    x = np.arange(3.0, dtype=np.float32).reshape(1, 1, 3, 1, 1)
    np.testing.assert_array_equal(halved(jnp.asarray(x))[0, 0, :, 0, 0], [0.5, 2.0])


def test_features_made_once_are_those_of_every_step_and_weight_0_is_none():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32),
                          jax.eval_shape(lambda: initial_params(ADAPTED, jax.random.key(0))))
    z, level = rng.normal(size=(2, 2, 4, 4, 3)).astype(np.float32), np.zeros(2, np.float32)
    maps = Conditioning(inputs={"edges": rng.uniform(size=(2, 2, 4, 4, 3)).astype(np.float32)})
    scaled = maps.adding({"scalars": {"edges_scale": jnp.array([1.0, 0.0])}})
    module, base = network_module(NETWORK), network_module(BASE)

    @jax.jit
    def outputs(params):
        once = precomputed(ADAPTED, ADAPTED.sampling, params, maps)
        assert [x.shape for x in once.features["edges"]] == [(2, 2, 4, 4, 8), (2, 2, 2, 2, 8)]
        assert [x.shape[1] for x in once.window(jnp.array(1), 1, 2).features["edges"]] == [1, 1]
        found = [module.apply({"params": params}, z, level, given) for given in (maps, once, scaled)]
        alone = {name: tree for name, tree in params.items() if not name.startswith("control_net_")}
        return *found, base.apply({"params": alone}, z, level)

    whole, once, some, none = outputs(params)
    np.testing.assert_allclose(once, whole, atol=1e-5)
    np.testing.assert_allclose(some[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(some[1], none[1], atol=1e-6)
    assert np.abs(np.asarray(whole) - none).max() > 0.05
    by_name = dataclasses.replace(ADAPTED.sampling, guidance=0.0, terms=(GuidanceTerm(name="edges", scale=3.0),))
    assert precomputed(ADAPTED, by_name, params, maps) is maps  # estimates without the map make their own
    assert precomputed(dataclasses.replace(ADAPTED, network=BASE), ADAPTED.sampling, params, maps) is maps


def test_it_learns_next_to_a_frozen_network():
    rng, mesh = np.random.default_rng(0), make_mesh(MeshSpec(data=1), jax.devices()[:1])
    shapes, theirs = (jax.eval_shape(lambda s=s: initial_params(s, jax.random.key(0))) for s in (
        ADAPTED, dataclasses.replace(ADAPTED, network=BASE)))
    base = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32), theirs)
    plan = planned(NETWORK, shapes, BASE, theirs)
    assert all(name.startswith("/control_net_edges/adapter_") for name in plan.new)
    state, step = create_state(ADAPTED, 0, mesh, plan, base), compile_train_step(ADAPTED, mesh)
    clips = np.repeat(np.repeat(rng.integers(0, 2, (4, 2, 2, 2, 1)) * 255, 2, 2), 2, 3)
    batch, losses = global_batch({"video": np.repeat(clips, 3, -1).astype(np.uint8)}, mesh), []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    learned = jax.device_get(state.params)
    del learned["control_net_edges"]
    jax.tree.map(np.testing.assert_array_equal, learned, base)


def test_what_cannot_be():
    with refused("LatentNetwork.control_nets", "T2IAdapter.widths=(8,)", str(UNET.widths)):
        dataclasses.replace(NETWORK, control_nets=(dataclasses.replace(ADAPTER, widths=(8,)),))
    with refused("Stage.network.control_nets", "factor=2", "permitted: "):
        dataclasses.replace(ADAPTED, network=dataclasses.replace(
            NETWORK, control_nets=(dataclasses.replace(ADAPTER, factor=2),)))
    with refused("T2IAdapter.widths", "widths=(8, 16)", "light=True"):
        T2IAdapter(widths=(8, 16), light=True)
