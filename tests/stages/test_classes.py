"""Class labels from the data to the network, and from the user to guided samples."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import random_params
from tests.refusals import refused
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.one_stage import is_guided
from vdm_jax.networks.config import Level, UNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.inputs import sampling_inputs, training_batch
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training.loop import device_batch
from vdm_jax.training.step import stage_loss

STAGE = Stage(name="base", video=VideoSpec(frames=1, height=4, width=4), process=Process(prediction="x"),
              network=UNet(levels=(Level(channels=8, blocks=1),), embedding_channels=16, classes=3),
              sampling=Sampling(steps=2, guidance=1.0, threshold=None, batch_size=4))
EXPERIMENT = Experiment(name="classes", stages=(STAGE,), data=CaptionedDigits(size=16, frames=2))


@pytest.fixture(scope="module")
def generator():
    return Generator(EXPERIMENT, {"base": random_params(STAGE, 0)}, jax.devices()[:1])


def test_labels_reach_the_network_and_are_dropped(generator):
    batch = {"video": jnp.zeros((4, 2, 4, 4, 3), jnp.uint8), "label": jnp.array([0, 1, 2, -1])}
    np.testing.assert_array_equal(training_inputs(STAGE, batch, jax.random.key(0))[1].labels, batch["label"])
    with refused("label.Label.of_batch", "'base'"):
        training_inputs(STAGE, {"video": batch["video"]}, jax.random.key(0))
    always = dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, text_dropout=0.999))

    @jax.jit
    def losses(label, key):
        return [stage_loss(stage, generator.params["base"], batch | {"label": label}, key)[0]
                for stage in (STAGE, always)]

    one, other = (losses(jnp.full(4, label), jax.random.key(1)) for label in (0, 2))
    assert abs(float(one[0] - other[0])) > 1e-4 and float(one[1]) == pytest.approx(float(other[1]), rel=1e-5)


def test_labels_decide_samples_and_guidance_leads_away_from_no_class(generator):
    assert is_guided(STAGE, STAGE.sampling)
    out = generator(["", "", ""], labels=[0, 1, 1], seed=3)
    again = generator([""], labels=[1], seed=3, first_index=1)
    np.testing.assert_array_equal(again.videos[0], out.videos[1])
    assert (generator([""], labels=[0], seed=3, first_index=1).videos != again.videos).any()
    assert (generator([""], labels=[1], seed=3, first_index=1, guidance=0.0).videos != again.videos).any()
    none = [generator([""], labels=[-1], seed=3, guidance=w).videos for w in (0.0, 5.0)]
    np.testing.assert_allclose(*(x.astype(int) for x in none), atol=1)


@pytest.mark.parametrize("labels", [None, [0], [0, 3], [0, -2]])
def test_labels_that_do_not_fit_are_refused(generator, labels):
    with refused("labels", "'base'"):
        generator(["", ""], labels=labels)


def test_planning_knows_of_labels(generator):
    batch, _ = training_batch(STAGE, EXPERIMENT.data, 8, 1)
    assert batch["label"].shape == (8,) and batch["label"].dtype == jnp.int32
    _, conditioning, _, _ = sampling_inputs(STAGE, 8, 1, generator.mesh)
    assert conditioning.labels.shape == (8,)


def test_a_part_of_a_batch_that_nobody_reads_is_named():
    mesh = make_mesh(MeshSpec(data=1), jax.devices()[:1])
    batch = {"video": np.zeros((2, 1, 4, 4, 3), np.uint8), "caption": np.array(["", ""]), "fps": np.ones(2, np.float32),
             "reference_pose": np.zeros((2, 1, 3, 4), np.float32)}
    assert set(device_batch(batch, mesh)) == {"video", "reference_pose"}
    with refused("inputs.device_fields", "'depth'"):
        device_batch({**batch, "depth": np.zeros((2, 1, 4, 4, 1))}, mesh)
