"""Training some of the parameters: the others stay bit for bit, and cost neither optimizer state nor gradient norm."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import Level, TemporalConvolution, UNet
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.inputs import device_bytes
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.state import abstract_state, create_state
from vdm_jax.training.step import compile_train_step, gradients
from vdm_jax.training.trainable import merged, split

NETWORK = UNet(levels=(Level(channels=8, blocks=1, kernel=1, mixers=(TemporalConvolution(),)),), patch=2,
               embedding_channels=16, groups=4)
STAGE = Stage(name="base", video=VideoSpec(frames=2, height=8, width=8), network=NETWORK, process=Process(),
              training=Training(batch_size=8, learning_rate=1e-2, warmup_steps=1, clip_norm=1e9,
                                trainable=("temporal_", "^/out/")))
MESH = MeshSpec(data=2, fsdp=4)


def with_patterns(*patterns):
    return dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, trainable=patterns))


def test_a_tree_is_split_by_paths_and_merged_again():
    tree = {"down": {"conv": {"kernel": 1, "bias": 2}, "temporal": {"kernel": 3}}, "out": {"kernel": 4}}
    trained, frozen = split(tree, ("temporal", "^/out/"))
    assert trained == {"down": {"temporal": {"kernel": 3}}, "out": {"kernel": 4}}
    assert frozen == {"down": {"conv": {"kernel": 1, "bias": 2}}}
    assert merged(trained, frozen) == tree and split(tree, ()) == (tree, {})


@pytest.fixture(scope="module")
def stepped():
    """A state on a mesh before and after three steps, and the metrics of the last."""
    mesh = make_mesh(MESH)
    batch = global_batch({"video": np.random.default_rng(0).integers(0, 256, (8, 2, 8, 8, 3)).astype(np.uint8)}, mesh)
    state = create_state(STAGE, 0, mesh)
    before = jax.tree.map(np.array, (state.params, state.ema))
    step = compile_train_step(STAGE, mesh)
    for _ in range(2):  # the projections start at zero: what is before them moves one step later
        state, _ = step(state, batch)
    middle = jax.tree.map(np.array, state.params)
    key = jax.random.fold_in(state.key, state.step)
    state, metrics = step(state, batch)
    grads = jax.jit(lambda p: gradients(with_patterns(), p, batch, key, unroll=True)[2])(middle)  # of all parameters
    return before, state, metrics, grads, mesh


def test_frozen_parameters_stay_and_trained_ones_move(stepped):
    before, state, _, _, _ = stepped
    for old, new in zip(before, (state.params, state.ema), strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(new):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            was = old
            for part in path:
                was = was[part.key]
            trained = "temporal_" in name or name.startswith("out/")
            assert np.array_equal(was, leaf) != trained, name


def test_the_gradient_norm_is_that_of_what_is_trained(stepped):
    _, _, metrics, grads, _ = stepped
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(split(grads, STAGE.training.trainable)[0]),
                               rtol=1e-4)
    assert metrics["gradient_norm"] < 0.99 * optax.tree.norm(grads)


def test_only_trained_parameters_have_optimizer_state(stepped):
    _, state, _, _, mesh = stepped
    trained = split(state.params, STAGE.training.trainable)[0]
    moments = optax.tree.get(state.opt_state, "mu")
    assert jax.tree.structure(moments) == jax.tree.structure(trained)
    all_of_them = abstract_state(with_patterns(), mesh).opt_state
    assert device_bytes(abstract_state(STAGE, mesh).opt_state) < 0.5 * device_bytes(all_of_them)


def test_such_a_state_is_saved_and_restored(stepped, tmp_path):
    _, state, _, _, mesh = stepped
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(2, state, {})
        checkpoints.wait()
        again, _ = checkpoints.restore(abstract_state(STAGE, make_mesh(MeshSpec(data=8))))
    for a, b in zip(jax.tree.leaves(state.replace(key=0)), jax.tree.leaves(again.replace(key=0)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: split({"out": {"kernel": jnp.ones(1)}}, ("temporal",)),
     ("trainable.split", "Training.trainable", "'temporal'", "permitted: ", "/out/kernel")),
    (lambda: abstract_state(with_patterns("temporal_", "attention"), make_mesh(MESH)),
     ("trainable.split", "Training.trainable", "'attention'", "permitted: ", "/down_0_0/")),
    (lambda: Training(trainable=("(",)), ("options.check_patterns", "Training.trainable", "'('", "permitted: ")),
])
def test_patterns_that_cannot_be(make, message):
    with refused(*message):
        make()
