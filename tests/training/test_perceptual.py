"""LPIPS as the distance of a consistency loss."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.distilling import CONSISTENCY, MESH, SILENT, initial, random_params, stage_of
from vdm_jax.diffusion.distillation import Perceptual, SquaredDistance
from vdm_jax.metrics.detectors import lpips, weights
from vdm_jax.planning.flops import training_work
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import VideoSpec
from vdm_jax.training.distillation import Roles, distillation_loss
from vdm_jax.training.draws import draw
from vdm_jax.training.perceptual import abstract_fixed, perceptual_distance, perceptual_weights
from vdm_jax.training.step import compile_train_step

SPEC = dataclasses.replace(CONSISTENCY, distance=Perceptual())


@pytest.fixture(scope="module")
def batch():
    return {"video": jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 2, 16, 16, 3)), jnp.uint8)}


@pytest.fixture(scope="module")
def random_weights():
    """Of the shapes of LPIPS."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (rng.random(leaf.shape) * 0.05).astype(np.float32),
                        lpips.abstract_parameters("vgg16"))


def test_the_shapes_are_those_of_the_published_files():
    for backbone in ("alexnet", "vgg16"):
        assert Perceptual(backbone=backbone).least_side == lpips.LEAST_SIDE[backbone]
        shapes = lpips.abstract_parameters(backbone)
        assert [head.shape for head in shapes["heads"]] == {
            "alexnet": [(64,), (192,), (384,), (256,), (256,)],
            "vgg16": [(64,), (128,), (256,), (512,), (512,)]}[backbone]


def test_the_distance_is_the_mean_of_frames_and_counts_what_is_asked_for(random_weights):
    rng = np.random.default_rng(2)
    x, target = (jnp.asarray(rng.uniform(-1, 1, (2, 3, 16, 16, 3)), jnp.float32) for _ in range(2))
    frames = np.stack([lpips.distance(random_weights, x[:, t], target[:, t], "vgg16") for t in range(3)], axis=1)
    found = perceptual_distance(Perceptual(), random_weights, x, target)
    np.testing.assert_allclose(found, frames.mean(1), rtol=1e-5)
    mask = jnp.zeros((2, 3, 1, 1, 1)).at[:, 1].set(1.0)
    found = perceptual_distance(Perceptual(), random_weights, x, target, mask)
    np.testing.assert_allclose(found, frames[:, 1], rtol=1e-5)


def test_a_train_step_takes_the_weights_as_an_argument(batch, random_weights):
    stage = stage_of(SPEC, network=SILENT)
    state = initial(stage)
    step = compile_train_step(stage, MESH, (random_weights,))
    own = jax.tree.map(jnp.array, state.params)  # the state is donated
    state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"]) and metrics["loss"] > 0
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), own, state.params)
    assert max(jax.tree.leaves(moved)) > 0
    params = random_params(stage)
    drawn = draw(stage, batch, jax.random.key(0))
    roles = Roles({"teacher": params, "target": params}, jnp.int32(0))
    loss = jax.jit(lambda weights: distillation_loss(stage, params, drawn, roles, weights)[0])
    doubled = {**random_weights, "heads": [2 * head for head in random_weights["heads"]]}
    np.testing.assert_allclose(loss(doubled), 2 * loss(random_weights), rtol=1e-4)


def test_weights_are_looked_for_and_planned(monkeypatch, random_weights):
    stage = stage_of(SPEC, network=SILENT)
    shapes = {"video": jax.ShapeDtypeStruct((8, 2, 16, 16, 3), "uint8")}
    params = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    plain, found = (training_work(of, shapes, params, MESH) for of in (stage_of(CONSISTENCY, network=SILENT), stage))
    # VGG16 on 8 x 2 frames of 16x16, of both videos and backwards to one of them: 2 per product of 14.7 M weights and
    # at least one place
    assert found.model - plain.model > 3 * 16 * 2 * 14_710_464 and found.computed - plain.computed > 0
    planned, = abstract_fixed(stage, MESH)
    assert sum(leaf.size for leaf in jax.tree.leaves(planned)) == 14_714_688 + 1472  # VGG16's convolutions, the heads
    assert abstract_fixed(stage_of(network=SILENT), MESH) == () == perceptual_weights(stage_of(network=SILENT))
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    lpips.parameters.cache_clear()
    weights.load.cache_clear()
    with refused("weights.find", "lpips_vgg16"):
        perceptual_weights(stage)


def test_what_it_cannot_see_is_refused():
    with refused("Distance", "(8, 8) pixels", "16 a side"):
        dataclasses.replace(stage_of(SPEC, network=SILENT), video=VideoSpec(frames=2, height=8, width=8))
    with refused("Distance", "(16, 16) pixels", "31 a side"):
        stage_of(dataclasses.replace(SPEC, distance=Perceptual(backbone="alexnet")), network=SILENT)
    stage_of(dataclasses.replace(SPEC, distance=SquaredDistance()), network=SILENT)
