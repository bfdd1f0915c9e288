"""Super-resolution trained on windows: they match exactly, fit the network, and training alone sees them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.conditions.low_resolution import enlarge
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.parallel.collectives import listed
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.flops import network_forward
from vdm_jax.planning.inputs import training_batch
from vdm_jax.stages.inputs import draw_corners, target_video, training_inputs
from vdm_jax.stages.options import Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import LowResolution, Stage, VideoSpec

CLEAN = NoiseAugmentation(training_logsnr=(25.0, 25.0))
NETWORK = UNet(levels=(Level(channels=4, blocks=1), Level(channels=4, blocks=1)), embedding_channels=8, groups=2,
               low_resolution=True)


def make_stage(crop=(8, 16), network=NETWORK, resize="bilinear", fill="repeat"):
    """2x8x16 pixels to 4x32x32: a scale of 4 in height and 2 in width."""
    return Stage(name="large", video=VideoSpec(frames=4, height=32, width=32), network=network, process=Process(),
                 source=LowResolution(frames=2, height=8, width=16, resize=resize, fill=fill, augmentation=CLEAN),
                 training=Training(crop=crop))


@pytest.fixture(scope="module")
def clips():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 4, 32, 32, 3)), jnp.uint8)


@pytest.mark.parametrize(("resize", "fill"), [("bilinear", "repeat"), ("nearest", "blank"), ("area", "linear")])
def test_a_window_is_that_of_the_whole_frames_up_to_its_edges(clips, resize, fill):
    """Target and low-resolution input are cut at the same place out of what sampling would see."""
    stage = make_stage(resize=resize, fill=fill)
    x, conditioning, _ = jax.jit(lambda batch, key: training_inputs(stage, batch, key))(
        {"video": clips}, jax.random.key(3))
    assert x.shape == conditioning.low_resolution.shape == (6, 4, 8, 16, 3)
    target = np.asarray(target_video(clips, stage.video))
    large = np.asarray(enlarge(stage.source.degrade(jnp.asarray(target)), stage.source, stage.video))
    found = []
    for i in range(6):
        places = [(top, left) for top in range(0, 25, 4) for left in range(0, 17, 2)
                  if np.allclose(target[i, :, top : top + 8, left : left + 16], x[i], atol=1e-6)]
        assert len(places) == 1
        top, left = places[0]
        np.testing.assert_allclose(conditioning.low_resolution[i], large[i, :, top : top + 8, left : left + 16],
                                   atol=2e-5)
        found.append(places[0])
    assert len(set(found)) > 1  # each sample has its own


def test_windows_lie_everywhere_and_follow_their_sample_key():
    stage, keys = make_stage(), jax.random.split(jax.random.key(0), 400)
    corners = np.asarray(draw_corners(keys, stage))
    assert set(corners[:, 0]) == set(range(7)) and set(corners[:, 1]) == set(range(9))
    np.testing.assert_array_equal(draw_corners(keys[5:7], stage), corners[5:7])


def test_a_window_as_large_as_the_video_is_the_video(clips):
    whole, cut = (training_inputs(make_stage(crop), {"video": clips}, jax.random.key(0)) for crop in (None, (32, 32)))
    np.testing.assert_array_equal(whole[0], cut[0])
    np.testing.assert_allclose(whole[1].low_resolution, cut[1].low_resolution, atol=2e-5)


def test_training_pays_for_windows_and_parameters_do_not_know():
    stage, data = make_stage(), CaptionedDigits(size=32, frames=4)
    whole = dataclasses.replace(stage, training=dataclasses.replace(stage.training, crop=None))
    shapes = [jax.eval_shape(lambda key, s=s: initial_params(s, key), jax.random.key(0)) for s in (stage, whole)]
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    few, many = (network_forward(s, training_batch(s, data, 2, 1)[0], shapes[0], mesh).convolution
                 for s in (stage, whole))
    assert many == 8 * few


def test_windows_are_cut_where_their_sample_lives(clips):
    """Of a batch that is split over devices no frame moves."""
    stage, mesh = make_stage(), make_mesh(MeshSpec(data=2), jax.devices()[:2])
    rows = jax.NamedSharding(mesh, jax.P("data"))

    def inputs(batch, key):
        x, conditioning, _ = training_inputs(stage, batch, key)
        return x, conditioning.low_resolution

    with jax.set_mesh(mesh):
        text = jax.jit(inputs, in_shardings=(rows, None), out_shardings=rows).lower(
            {"video": clips}, jax.random.key(0)).compile().as_text()
    assert sum(row.bytes for row in listed(text)) < clips[0].size


@pytest.mark.parametrize(("crop", "network", "message"), [
    ((8, 9), NETWORK, "Stage 'large': training.crop=(8, 9): width 9; permitted: multiples of 2 (the network's "
                      "reduction 2, the scale 2) up to 32"),
    ((6, 8), NETWORK, "Stage 'large': training.crop=(6, 8): height 6; permitted: multiples of 4 (the network's "
                      "reduction 2, the scale 4) up to 32"),
    ((36, 8), NETWORK, "Stage 'large': training.crop=(36, 8): height 36; permitted: multiples of 4 (the network's "
                       "reduction 2, the scale 4) up to 32"),
    ((8, 8), dataclasses.replace(NETWORK, position_period=100.0),
     "Stage 'large': training.crop=(8, 8) with network.position_period=100, which tells the network where in the "
     "window it is and not where in the video; permitted: positions relative to each other, or none"),
    ((8, 8), dataclasses.replace(NETWORK, middle=(SelfAttention(pattern=Spatial(), head_dim=4, position="learned"),)),
     "Stage 'large': training.crop=(8, 8) with SelfAttention.position='learned' within frames, which tells the network "
     "where in the window it is and not where in the video; permitted: positions relative to each other, or none"),
])
def test_windows_that_do_not_fit_are_refused(crop, network, message):
    with refused("Stage.training.crop") as error:
        make_stage(crop, network)
    assert str(error.value) == message


def test_places_along_time_are_no_matter():
    mixer = SelfAttention(pattern=Temporal(), head_dim=4, position="sinusoidal")
    assert make_stage((8, 8), dataclasses.replace(NETWORK, middle=(mixer,))).training.crop == (8, 8)


def test_a_stage_from_noise_has_no_windows():
    with refused("Stage.training.crop"):
        Stage(name="base", video=VideoSpec(frames=1, height=8, width=8), process=Process(),
              training=Training(crop=(4, 4)), network=dataclasses.replace(NETWORK, low_resolution=False))
