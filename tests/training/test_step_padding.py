"""Clips with padded frames: the padding has no loss, and nothing that a stage is given depends on it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, Temporal, WithExtraKeys
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import Level, Reference, SelfAttention, UNet
from vdm_jax.stages.inputs import hold_valid, training_inputs
from vdm_jax.stages.options import Training
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.stages.stage import LowResolution, Stage, VideoSpec
from vdm_jax.training.step import stage_loss

NETWORK = UNet(levels=(Level(channels=8, blocks=1, mixers=(SelfAttention(pattern=Temporal(), head_dim=8),)),), patch=2,
               embedding_channels=16, groups=4)
STAGE = Stage(name="base", video=VideoSpec(frames=4, height=4, width=4), network=NETWORK,
              process=Process(prediction="x"), training=Training(batch_size=2))
VALID = np.array([[True] * 6 + [False] * 2, [True] * 8])  # of clips with 8 frames, of which the stage takes every other


@pytest.fixture(scope="module")
def batch():
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 4, 4, 3)).astype(np.uint8)
    return {"video": video, "frame_valid": VALID}


def repadded(batch):
    """The same clips with other padding."""
    return {**batch, "video": np.where(VALID[..., None, None, None], batch["video"], 255 - batch["video"])}


def test_padded_frames_do_not_count_in_the_loss(batch):
    """A fresh network predicts x = 0: the error in x is the mean square of the frames that exist."""
    params = initial_params(STAGE, jax.random.key(0))
    _, aux = stage_loss(STAGE, params, batch, jax.random.key(1), train=False)
    x = batch["video"][:, ::2] / 127.5 - 1
    np.testing.assert_allclose(aux["x_mse"], (np.square(x[0, :3]).mean() + np.square(x[1]).mean()) / 2, rtol=1e-5)


@pytest.mark.parametrize("fill", ["repeat", "linear"])
def test_a_low_resolution_video_does_not_depend_on_the_padding(batch, fill):
    stage = dataclasses.replace(STAGE, source=LowResolution(frames=2, height=2, width=2, fill=fill),
                                network=dataclasses.replace(NETWORK, low_resolution=True))
    given, other = (training_inputs(stage, jax.tree.map(jnp.asarray, b), jax.random.key(2)) for b in
                    (batch, repadded(batch)))
    np.testing.assert_array_equal(given[0], other[0])
    np.testing.assert_array_equal(given[1].low_resolution, other[1].low_resolution)
    np.testing.assert_array_equal(given[1].frame_valid, VALID[:, ::2])


def test_appended_images_exist(batch):
    images = np.zeros((2, 1, 4, 4, 3), np.uint8)
    x, conditioning, count = training_inputs(STAGE, {**batch, "images": images}, jax.random.key(2))
    assert x.shape[1] == 5 and count == 1
    np.testing.assert_array_equal(conditioning.frame_valid[:, 4], True)


def test_held_frames_are_the_nearest_before_or_the_first():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1, 1) * jnp.ones((1, 5, 1, 1, 3))
    valid = jnp.asarray([[False, True, False, True, False]])
    assert hold_valid(x, valid)[0, :, 0, 0, 0].tolist() == [1, 1, 1, 3, 3]


def test_references_of_a_batch_reach_the_network(batch):
    mixers = (SelfAttention(pattern=WithExtraKeys(inner=Spatial()), head_dim=8, extra_tokens="picture"),)
    network = dataclasses.replace(NETWORK, levels=(Level(channels=8, blocks=1, mixers=mixers),),
                                  references=(Reference(name="picture", width=6),))
    stage = dataclasses.replace(STAGE, network=network)
    assert example_conditioning(stage).references["picture"].shape == (1, 1, 1, 6)
    picture = np.ones((2, 1, 3, 6), np.float32)
    _, conditioning, _ = training_inputs(stage, {**batch, "reference_picture": picture}, jax.random.key(2))
    np.testing.assert_array_equal(conditioning.references["picture"], picture)
    params = jax.eval_shape(lambda: initial_params(stage, jax.random.key(0)))
    with refused("conditioning.check_parts", "'picture'"):
        jax.eval_shape(lambda p: stage_loss(stage, p, batch, jax.random.key(1)), params)
