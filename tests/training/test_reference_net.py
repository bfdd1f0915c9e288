"""A latent U-Net that sees the features of a reference picture by a second one, from the clips to the generator."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.commands.tiny_control import get_config
from tests.networks.test_latent_patterns import run
from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, WithExtraKeys
from vdm_jax.commands.sample_command import Sample, referenced
from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, Request
from vdm_jax.configuration import from_json, to_json
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.prompts import requested_conditioning
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import reference_net_of
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork, reference_tokens
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import path_name
from vdm_jax.planning.inputs import training_batch
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.stages.stage import Stage
from vdm_jax.training.init_from import planned
from vdm_jax.training.loop import device_batch
from vdm_jax.training.state import TrainState, make_optimizer
from vdm_jax.training.step import compile_train_step
from vdm_jax.video.writing import write_png

TINY = get_config().stages[0]
UNET = dataclasses.replace(TINY.network.unet, in_channels=3, out_channels=3,
                           spatial_pattern=WithExtraKeys(inner=Spatial()))
NETWORK = LatentNetwork(unet=UNET, timesteps=TINY.network.timesteps, reference_net=True)
STAGE = dataclasses.replace(TINY, latent=None, network=NETWORK, process=dataclasses.replace(
    TINY.process, prediction="x"), training=dataclasses.replace(TINY.training, trainable=()))
EXPERIMENT = dataclasses.replace(get_config(), stages=(STAGE,))


@pytest.fixture(scope="module")
def params():
    """Begun as a U-Net without references."""
    alone = dataclasses.replace(NETWORK, reference_net=False, unet=dataclasses.replace(UNET, spatial_pattern=Spatial()))
    shapes, theirs = (jax.eval_shape(lambda n=n: initial_params(dataclasses.replace(STAGE, network=n),
                                                                jax.random.key(0))) for n in (NETWORK, alone))
    rng = np.random.default_rng(0)
    base = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32), theirs)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    begun = planned(NETWORK, shapes, alone, theirs).apply(zeros, base)
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(begun["reference_net"]):
        np.testing.assert_array_equal(leaf, named[path_name(path)])
    return begun


def test_it_takes_the_tokens_of_the_second_network(params):
    rng = np.random.default_rng(1)
    z, picture = (jnp.asarray(rng.normal(size=(1, frames, 8, 8, 3)), jnp.float32) for frames in (2, 2))
    found = jax.jit(lambda p: network_module(NETWORK).apply(
        {"params": p}, z, jnp.zeros(1), Conditioning(inputs={"reference_picture": picture})))(params)
    context = jnp.zeros((1, 1, 1, 6))
    _, state = jax.jit(lambda p: LatentUNetNetwork(reference_net_of(UNET)).apply(
        {"params": p}, picture, jnp.zeros(1), context, mutable=["intermediates"]))(params["reference_net"])
    tokens = {name: a.reshape(1, 1, -1, a.shape[-1]) for name, a in reference_tokens(state["intermediates"]).items()}
    level = NETWORK.timesteps.timestep(jnp.zeros(1))
    base = {name: tree for name, tree in params.items() if name != "reference_net"}
    np.testing.assert_allclose(found, run(UNET, base, z, level, context, references=tokens), atol=1e-5)


@pytest.mark.full
def test_it_learns_and_the_picture_changes_what_is_sampled(params):
    mesh, rng = make_mesh(MeshSpec(data=1), jax.devices()[:1]), np.random.default_rng(0)
    tree = [jax.tree.map(jnp.array, params) for _ in range(2)]
    state = TrainState(step=jnp.int32(0), params=tree[0], opt_state=make_optimizer(STAGE.training).init(params),
                       ema=tree[1], key=jax.random.key(3))
    pictures = rng.integers(0, 256, (8, 1, 8, 8, 3)).astype(np.uint8)
    batch = device_batch({"video": np.repeat(pictures, 2, 1), "reference_picture": pictures}, mesh)
    step = compile_train_step(STAGE, mesh)
    for _ in range(2):
        state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
    learned = jax.device_get(state.params)
    key = "middle_transformer"
    change = learned["reference_net"][key]["in"]["kernel"] - params["reference_net"][key]["in"]["kernel"]
    assert np.abs(change).max() > 1e-3  # gradients go through both
    attention = learned[key]["space"]["self_attention"]  # sharper and louder, so that it shows in 8 bits
    for layer, factor in (*((attention[name], 5) for name in ("query", "key", "value")), (learned[key]["out"], 20)):
        layer["kernel"] = factor * layer["kernel"]
    generator = Generator(EXPERIMENT, {"base": learned}, jax.devices()[:1])
    given = [generator(["", ""], references={"picture": p[:2, 0]}).videos.astype(int) for p in (
        pictures, pictures[2:])]
    assert np.abs(given[0] - given[1]).max() > 1


def test_shapes_null_and_refusals(tmp_path):
    assert from_json(Stage, to_json(STAGE)) == STAGE
    planned_batch, _ = training_batch(STAGE, None, 4, 1)
    assert planned_batch["reference_picture"].shape == (4, 1, 8, 8, 3)
    assert example_conditioning(STAGE).inputs["reference_picture"].shape == (1, 1, 8, 8, 3)
    asked = requested_conditioning(STAGE, Request(("",), {"references": {"picture": np.full((1, 16, 16, 3), 255,
                                                                                            np.uint8)}}))
    assert (asked.inputs["reference_picture"] == 1).all()
    assert not asked.without_text().inputs["reference_picture"].any()
    assert CONDITIONS["reference_picture"].taken(NETWORK) and not NETWORK.references
    with refused("reference.ReferencePicture.of_request", "[0]", "'base'"):
        requested_conditioning(STAGE, Request(("",)))
    with refused("LatentNetwork.reference_net", "Spatial()"):
        dataclasses.replace(NETWORK, unet=dataclasses.replace(UNET, spatial_pattern=Spatial()))
    write_png(tmp_path / "a.png", np.full((20, 30, 3), 90, np.uint8))
    options = Sample(run="x", captions=("",), reference=(tmp_path / "a.png",))
    assert (referenced(options, EXPERIMENT)["picture"] == 90).all()
