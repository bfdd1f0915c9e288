"""A ControlNet stage: a branch that begins as a copy of a frozen U-Net and adds nothing, learns to follow the edges of
clips, and is sampled with those of other videos."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.commands.tiny_control import get_config
from vdm_jax.commands.sample_command import Sample, captions_for, controlled
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.control_net import ControlNetNetwork, control_net_of
from vdm_jax.networks.kinds import network_module
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import path_name
from vdm_jax.stages.parameters import initial_params
from vdm_jax.training.init_from import planned
from vdm_jax.training.state import TrainState, make_optimizer
from vdm_jax.training.step import compile_train_step
from vdm_jax.training.trainable import split
from vdm_jax.video.writing import write_png, write_video

TINY = get_config().stages[0]
UNET = dataclasses.replace(TINY.network.unet, in_channels=3, out_channels=3)
STAGE = dataclasses.replace(TINY, latent=None, network=dataclasses.replace(  # in pixels, which compiles sooner
    TINY.network, unet=UNET, control_nets=(control_net_of(UNET, hint_widths=(4,)),)))
EXPERIMENT = dataclasses.replace(get_config(), stages=(STAGE,))
BASE = dataclasses.replace(STAGE.network, conditions=(), control_nets=())


def named(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def begun():
    """Parameters of the stage, begun as a U-Net, and those of the U-Net."""
    alone = dataclasses.replace(STAGE, network=BASE)
    shapes, theirs = (jax.eval_shape(lambda s=s: initial_params(s, jax.random.key(0))) for s in (STAGE, alone))
    rng = np.random.default_rng(0)
    base = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32), theirs)
    z, hint = jnp.zeros((1, 1, 8, 8, 3)), jnp.zeros((1, 1, 8, 8, 3))
    branch = jax.jit(lambda: ControlNetNetwork(STAGE.network.control_nets[0]).init(
        jax.random.key(1), z, jnp.zeros(1), jnp.zeros((1, 1, 1, 6)), hint)["params"])()
    own = {**base, "control_net_edges": branch}
    return planned(STAGE.network, shapes, BASE, theirs).apply(own, base), base


def test_a_branch_that_begins_adds_nothing_and_is_a_copy(begun):
    params, base = begun
    rng = np.random.default_rng(1)
    z, level = rng.normal(size=(1, 2, 8, 8, 3)).astype(np.float32), np.zeros((1, 2), np.float32)  # a level per frame
    edges = Conditioning(inputs={"edges": rng.uniform(size=(1, 2, 8, 8, 3)).astype(np.float32)})
    found = jax.jit(lambda p: network_module(STAGE.network).apply({"params": p}, z, level, edges))(params)
    expected = jax.jit(lambda p: network_module(BASE).apply({"params": p}, z, level))(base)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.std(expected) > 0.05
    for name, leaf in named(params["control_net_edges"]).items():
        if name.startswith(("/hint/", "/control_")):
            assert not name.startswith(("/hint/out", "/control_")) or not leaf.any(), name
        else:
            np.testing.assert_array_equal(leaf, named(base)[name])


def test_it_learns_with_a_frozen_base_and_the_map_changes_what_is_sampled(begun):
    params, base = begun
    mesh, copied = make_mesh(MeshSpec(data=1), jax.devices()[:1]), jax.tree.map(np.array, params)
    moments = make_optimizer(STAGE.training).init(split(params, STAGE.training.trainable)[0])
    state = TrainState(step=jnp.int32(0), params=jax.tree.map(jnp.array, copied), opt_state=moments,
                       ema=jax.tree.map(jnp.array, copied), key=jax.random.key(3))
    step, rng = compile_train_step(STAGE, mesh), np.random.default_rng(0)
    clips = np.repeat(np.repeat(rng.integers(0, 2, (8, 2, 2, 2, 1)) * 255, 4, 2), 4, 3)  # quarters of black and white
    batch, losses = global_batch({"video": np.repeat(clips, 3, -1).astype(np.uint8)}, mesh), []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])
    learned = jax.device_get(state.params)
    branch = learned.pop("control_net_edges")
    jax.tree.map(np.testing.assert_array_equal, learned, base)
    for name in ("control_0", "control_middle"):
        assert np.abs(branch[name]["kernel"]).max() > 1e-3
    generator = Generator(EXPERIMENT, {"base": {**learned, "control_net_edges": branch}}, jax.devices()[:1])
    video = rng.integers(0, 256, (1, 2, 8, 8, 3)).astype(np.uint8)
    later = video.copy()
    later[:, 1] = 0  # attention between frames sees the first and the previous one
    first, other = (generator([""], edges=v).videos.astype(int) for v in (video, later))
    changed = np.abs(other - first).max((0, 2, 3, 4))
    assert changed[0] == 0 and changed[1] > 2


def test_maps_of_the_sample_command(tmp_path):
    levels = np.repeat(np.arange(8)[:, None, None, None] * 20, 16, 1) * np.ones((1, 1, 16, 3), np.uint8)
    write_video(tmp_path / "a.mp4", levels.astype(np.uint8), 8, lossless=True)
    write_png(tmp_path / "b.png", np.full((20, 30, 3), 90, np.uint8))
    options = Sample(run="x", count=2, control=(tmp_path / "a.mp4", tmp_path / "b.png"))
    options = dataclasses.replace(options, captions=captions_for(options, EXPERIMENT))
    assert options.captions == ("", "")
    found = controlled(options, EXPERIMENT, STAGE.video)["edges"]
    assert found.shape == (4, 2, 8, 8, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found[0, :, 0, 0, 0], [0, 20], atol=2)
    assert (found[2:] == 90).all() and controlled(Sample(run="x"), EXPERIMENT, STAGE.video) == {}
