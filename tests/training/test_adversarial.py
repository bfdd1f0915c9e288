"""The adversarial loss of distribution matching: a classifier on the critic's features."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.distilling import CAUSAL, JUDGED, MATCHING, MESH, SILENT, initial, random_params, stage_of
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import EDMSchedule
from vdm_jax.training.adversarial import CLASSIFIER, middle, scores, student_loss
from vdm_jax.training.distillation import Roles, distillation_loss, simulated
from vdm_jax.training.draws import draw
from vdm_jax.training.state import optimizer_of
from vdm_jax.training.step import jit_train_step


@pytest.fixture(scope="module")
def batch():
    return {"video": jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 2, 16, 16, 3)), jnp.uint8)}


def constant(critic, score):
    """A classifier that gives every video the same score."""
    zeros = jax.tree.map(jnp.zeros_like, critic[CLASSIFIER])
    return {**critic, CLASSIFIER: {**zeros, "out": {**zeros["out"], "bias": zeros["out"]["bias"] + score}}}


def test_both_losses_are_logistic(batch):
    """With the score s for everything: log(1 + exp(-s)) for the student, and log(1 + exp(s)) more for the critic."""
    stage, plain = stage_of(JUDGED, network=SILENT), stage_of(MATCHING, network=SILENT)
    params, score = random_params(plain), 0.7
    critic = constant(initial(stage).networks["critic"], score)
    networks = {"teacher": params, "critic": critic, "student": params}

    def loss(stage, trained):
        subject = {"student": params, "critic": critic}[trained]
        return float(jax.jit(lambda: distillation_loss(stage, subject, draw(stage, batch, jax.random.key(3)), Roles(
            networks, jnp.int32(0), trained))[0])())

    real, fake = (math.log1p(math.exp(sign * score)) for sign in (-1, 1))
    np.testing.assert_allclose(loss(stage, "student") - loss(plain, "student"), 0.5 * real, rtol=1e-3)
    np.testing.assert_allclose(loss(stage, "critic") - loss(plain, "critic"), 0.25 * (real + fake), rtol=1e-3)


def test_a_classifier_learns_to_tell_clips_from_the_student_and_the_student_to_pass(batch):
    spec = dataclasses.replace(JUDGED, critic_updates=200, classifier=1.0, steps=1, times=(0.02, 0.2))
    stage = stage_of(spec, network=SILENT, learning_rate=2e-2, warmup_steps=0, steps=60)
    state = initial(stage)
    assert set(state.networks) == {"teacher", "critic", optimizer_of("critic")}
    step, losses = jit_train_step(stage, MESH), []
    with jax.set_mesh(MESH):
        for _ in range(50):
            state, metrics = step(state, batch)
            losses.append(float(metrics["classifier_loss"]))
    assert losses[0] == pytest.approx(2 * math.log(2), abs=0.6) and np.mean(losses[-10:]) < 0.5
    drawn = draw(stage, batch, jax.random.key(9))
    made = simulated(stage, state.params, drawn)
    score = jax.jit(lambda x: scores(stage, state.networks["critic"], drawn, x, jax.random.key(7)).mean())
    assert score(drawn.x) > 1 > -1 > score(made)
    up = jax.jit(jax.grad(score))(made)  # where the student is led
    assert score(made + 0.1 * up / jnp.abs(up).max()) > score(made)


def test_what_no_loss_counts_says_nothing(batch):
    """The score of videos that differ from the clip in padded frames alone is the clip's."""
    stage = stage_of(JUDGED, network=SILENT)
    padded = {**batch, "frame_valid": jnp.ones((8, 2), bool).at[:, 1].set(False)}
    drawn, critic = draw(stage, padded, jax.random.key(3)), initial(stage).networks["critic"]
    bright = drawn.x.at[:, 1].add(1.0)
    found = [jax.jit(lambda x: student_loss(stage, critic, drawn, x, jax.random.key(5)))(x)
             for x in (drawn.x, bright, drawn.x.at[:, 0].add(1.0))]
    assert found[0] == found[1] != found[2]


def test_the_critic_sees_videos_as_it_does_in_its_own_loss(batch):
    """Of a process that scales its input, features are those of the scaled one."""
    process = Process(schedule=EDMSchedule(), prediction="edm")
    stage = dataclasses.replace(stage_of(JUDGED, network=SILENT), process=process)
    params, drawn = random_params(stage), draw(stage, batch, jax.random.key(3))
    level = jnp.full(8, -6.0)
    z = process.diffuse(drawn.x, drawn.noise, level)
    assert z.std() > 15 and process.network_input(z, level).std() == pytest.approx(1, abs=0.1)
    plain = dataclasses.replace(stage, process=Process())
    np.testing.assert_allclose(middle(stage, params, drawn, z, level),
                               middle(plain, params, drawn, process.network_input(z, level), level), rtol=1e-5)


def test_only_a_u_net_has_a_middle():
    with refused("DistributionMatching.adversarial", "UNet with resample_order='before'", "permitted: 0"):
        stage_of(JUDGED, network=dataclasses.replace(SILENT, resample_order="before"))
    with refused("DistributionMatching.adversarial", "adversarial=0.5", "VideoTransformer", "permitted: 0"):
        stage_of(JUDGED, network=dataclasses.replace(CAUSAL, teacher_forcing=False))
