"""The losses of few-step students: their targets, their distances, and what they cost."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.distilling import CONSISTENCY, JUDGED, MATCHING, MESH, PROGRESSIVE, SILENT, random_params, stage_of
from vdm_jax.diffusion.distillation import SquaredDistance
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.planning.flops import training_work
from vdm_jax.stages.distillation import ConsistencyTraining
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.parameters import initial_params
from vdm_jax.training.distillation import Roles, distillation_loss, simulated
from vdm_jax.training.draws import draw
from vdm_jax.training.state import abstract_state, initial_state
from vdm_jax.training.step import train_step


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {"video": rng.integers(0, 256, (8, 2, 16, 16, 3)).astype(np.uint8), "tokens": rng.integers(2, 8, (8, 8))}


def losses(stage, params, batch, step, networks=None):
    """Loss of a student, whose teacher and target are itself by default, at a step."""
    networks = networks or {role: params for role in ("teacher", "target")}

    @jax.jit
    def loss(params, networks, step):
        drawn = draw(stage, batch, jax.random.key(4))
        return distillation_loss(stage, params, drawn, Roles(networks, step))[0]

    return float(loss(params, networks, jnp.int32(step)))


def test_guidance_of_weight_zero_is_learnt_already(batch):
    """In the first round the teacher's guided estimate of w = 0 is its conditional one, which the student has."""
    params = random_params(stage_of())
    found = {weight: losses(stage_of(dataclasses.replace(PROGRESSIVE, guidance=(weight, weight)),
                                     sampling=Sampling(sampler=DDIM(), threshold=None)), params, batch, 0)
             for weight in (0.0, 2.0)}
    assert found[0.0] < 1e-9 < 1e-4 < found[2.0]


def test_estimates_of_the_teacher_that_agree_are_the_target_of_a_halved_step(batch):
    """A network of zeros that predicts x has the same estimate in both steps; the error of a student that is off by b
    is b^2, with the weight max(SNR, 1), which is 1 at the times 1 and 1/2."""
    process = Process(prediction="x")
    alone = dataclasses.replace(PROGRESSIVE, guidance=None)
    stage = dataclasses.replace(stage_of(alone, network=SILENT), process=process)
    assert stage.training.distillation.rounds == (2, 1)
    zero = jax.tree.map(np.zeros_like, random_params(stage))
    off = {**zero, "out": {**zero["out"], "bias": zero["out"]["bias"] + np.float32(0.3)}}
    for step in (0, 2):
        assert losses(stage, zero, batch, step, {"teacher": zero}) == 0
        assert losses(stage, off, batch, step, {"teacher": zero}) == pytest.approx(0.09, rel=1e-4)


def test_a_consistency_model_whose_intervals_are_short_is_its_own_target(batch):
    """Of a smooth network and its own trajectory; the distance falls at least as the squared length of an interval."""
    params = jax.tree.map(lambda p: 0.3 * p, random_params(stage_of(network=SILENT)))
    found = [losses(stage_of(dataclasses.replace(CONSISTENCY, intervals=n, distance=SquaredDistance(), solver=DDIM()),
                             network=SILENT), params, batch, 0) for n in (8, 512)]
    assert found[1] < found[0] / 20


def test_training_from_data_alone_compares_two_levels_of_the_same_noise(batch):
    stage = stage_of(ConsistencyTraining(first=2, last=2, distance=SquaredDistance()), network=SILENT, steps=4)
    assert stage.training.distillation.roles == ()
    params = random_params(stage)
    zero = jax.tree.map(jnp.zeros_like, params)
    assert losses(stage, params, batch, 0, {"unused": zero}) > 1e-4
    grown = stage_of(ConsistencyTraining(first=2, last=8, target_decay=0.9), network=SILENT, steps=4)
    state = jax.eval_shape(lambda key: initial_state(grown, key), jax.random.key(0))
    assert set(state.networks) == {"target"}
    _, metrics = jax.eval_shape(lambda s: train_step(grown, s, batch), state)
    assert set(metrics) >= {"loss", "x_mse", "intervals"}


def test_a_student_of_matching_is_trained_where_its_sampler_leads_it(batch):
    """A network of zeros that predicts x, off by b: of one step its videos are b, whatever the noise; the regression is
    the squared distance to the teacher's, which are 0."""
    process = Process(prediction="x")

    def stage(**changes):
        spec = dataclasses.replace(MATCHING, **changes)
        return dataclasses.replace(stage_of(spec, network=SILENT), process=process)

    zero = jax.tree.map(np.zeros_like, random_params(stage()))
    off = {**zero, "out": {**zero["out"], "bias": zero["out"]["bias"] + np.float32(0.3)}}
    for steps in (1, 3):
        student = stage(steps=steps)
        x = jax.jit(lambda student=student: simulated(student, off, draw(student, batch, jax.random.key(4))))()
        np.testing.assert_allclose(x, 0.3, rtol=1e-5)
    # Teacher 0, critic 0.3: the gradient points to the teacher with the size 1, and the error is half of its square.
    networks = {"teacher": zero, "critic": off}
    found = [losses(stage(steps=1, regression=weight, regression_steps=2), off, batch, 0, networks)
             for weight in (0.0, 2.0)]
    np.testing.assert_allclose(found, [0.5, 0.5 + 2 * 0.09], rtol=1e-4)


def test_evaluations_of_teachers_and_targets_are_planned():
    batch = {"video": jax.ShapeDtypeStruct((8, 2, 16, 16, 3), "uint8")}

    def work(distillation):
        stage = stage_of(distillation, network=SILENT)
        params = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
        return training_work(stage, batch, params, MESH)

    plain = work(None)
    for distillation, evaluations in ((dataclasses.replace(PROGRESSIVE, guidance=None), 2), (CONSISTENCY, 3),
                                      (ConsistencyTraining(), 1), (MATCHING, 1.5 + 5.5 / 2),
                                      (JUDGED, 1.5 + 5.5 / 2 + 6 + 3 / 2)):
        found = work(distillation)
        assert found.model == pytest.approx((3 + evaluations) / 3 * plain.model)
        assert found.computed - plain.computed == pytest.approx(evaluations / 3 * plain.computed, rel=0.1)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(abstract_state(stage_of(distillation, network=SILENT), MESH)))
             for distillation in (None, CONSISTENCY, MATCHING)]
    plain = abstract_state(stage_of(network=SILENT), MESH)
    student, optimizer = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (plain.params, plain.opt_state))
    assert sizes[1] - sizes[0] == 2 * student  # teacher and target once each
    assert sizes[2] - sizes[0] == 2 * student + optimizer  # and the critic's
