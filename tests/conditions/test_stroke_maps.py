"""Strokes as a condition: rasterised, drawn from optical flow, asked for, and next to the frame that is given."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import AUTOENCODER
from vdm_jax.commands.configs import config_folder, load_module
from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, Request, SampledVideos, Sizes
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.conditions.strokes import DrawnStrokes, displacements, drawn_for_clips, drawn_strokes, rasterised
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.inputs import draw_corners, training_inputs
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Stage
from vdm_jax.video.strokes import Stroke, decoded, encoded, steps_at

STAGE = load_module(config_folder() / "mcdiff" / "_tiny.py").apart(AUTOENCODER).stages[0]
CONDITION = CONDITIONS["strokes"]


def oracle(points, steps, valid, height, width, radius):
    """Pixel by pixel: the last valid point whose disc it lies in."""
    found = np.zeros((height, width, 3), np.float32)
    for row in range(height):
        for column in range(width):
            for (x, y), step, there in zip(points, steps, valid, strict=True):
                if there and (column - x) ** 2 + (row - y) ** 2 <= max(radius, 0.71) ** 2:
                    found[row, column] = *step, 1
    return found


@pytest.mark.parametrize("radius", [0.0, 1.0, 2.5])
def test_strokes_are_rasterised_as_pixel_by_pixel_and_as_those_of_files(radius):
    rng = np.random.default_rng(0)
    points, steps = rng.integers(-2, 14, (9, 2)), rng.normal(size=(9, 2)).astype(np.float32)  # some over the border
    valid = rng.random(9) < 0.7
    found = rasterised(jnp.asarray(points, jnp.float32), jnp.asarray(steps), jnp.asarray(valid), 10, 13, radius)
    np.testing.assert_array_equal(found, oracle(points, steps, valid, 10, 13, radius))
    strokes = [Stroke(0, np.stack([p, p + s]).astype(np.float64)) for p, s, there in
               zip(points, steps, valid, strict=True) if there]
    moved, mask = steps_at(strokes, 0, 10, 13, radius)
    np.testing.assert_allclose(found[..., :2], moved, atol=1e-5)
    np.testing.assert_array_equal(found[..., 2], mask)


def test_pictures_are_displacements_as_shares_of_the_limit():
    rng = np.random.default_rng(1)
    pictures = encoded(rng.uniform(-1, 1, (2, 8, 8, 2)), rng.random((2, 8, 8)) < 0.5)
    moved, mask = decoded(pictures)  # pixels, of which the limit is one here
    for given in (pictures, jnp.asarray(pictures, jnp.float32) / 255):
        found = displacements(jnp.asarray(given))
        np.testing.assert_allclose(found[..., :2], np.where(mask[..., None], moved, 0), atol=1e-5)
        np.testing.assert_array_equal(found[..., 2], mask)


def test_strokes_lie_on_what_moves_and_where_the_flow_is_known():
    flow = np.zeros((8, 8, 3), np.float32)
    flow[..., 2], flow[:2] = 1, 0  # two rows of which nothing is known
    flow[5, 3:6, :2] = (1, 0), (0, 1), (0.5, 0.5)
    drawn = jax.jit(jax.vmap(lambda key, spec: drawn_strokes(spec, key, jnp.asarray(flow)), (0, None)),
                    static_argnums=1)
    keys = jax.random.split(jax.random.key(0), 200)
    moving = drawn(keys, DrawnStrokes(moving=2, general=0, radius=0.0))
    np.testing.assert_array_equal(moving[..., 2].sum((1, 2)), 2)
    shares = np.asarray(moving[:, 5, 3:6, 2]).mean(0)  # of two of three without replacement, by lengths 1, 1, 0.71
    np.testing.assert_allclose(shares.sum(), 2, atol=1e-6)
    first = np.array([1, 1, 0.5**0.5]) / (2 + 0.5**0.5)
    wanted = [first[i] + sum(first[j] * first[i] / (1 - first[j]) for j in range(3) if j != i) for i in range(3)]
    np.testing.assert_allclose(shares, wanted, atol=0.1)
    every = drawn(keys, DrawnStrokes(moving=9, general=3, radius=0.0))  # fewer where fewer move
    assert not every[:, :2].any() and (np.asarray(every[..., 2].sum((1, 2))) <= 6).all()
    assert (np.asarray(every[..., 2]).mean(0)[2:] > 0.01).all()
    kept = np.asarray(every[..., 2:] > 0)
    np.testing.assert_array_equal(every, np.where(kept, flow, 0))
    with refused("DrawnStrokes", "moving=0", "at least one"):
        DrawnStrokes(moving=0, general=0)


def batch(rng, count=3):
    video = rng.integers(0, 256, (count, 2, 16, 16, 3), dtype=np.uint8)
    flow = encoded(rng.uniform(-2, 2, (count, 2, 16, 16, 2)), rng.random((count, 2, 16, 16)) < 0.8)
    return {"video": jnp.asarray(video), "control": jnp.asarray(flow)}


def test_training_shows_strokes_of_the_flow_and_the_current_frame():
    clips = batch(np.random.default_rng(2))
    stage = dataclasses.replace(STAGE, latent=None, network=dataclasses.replace(
        STAGE.network, unet=dataclasses.replace(STAGE.network.unet, out_channels=3)))
    inputs = training_inputs(stage, clips, jax.random.key(0))[1].inputs
    np.testing.assert_array_equal(inputs["flow"], displacements(clips["control"]))
    np.testing.assert_allclose(inputs["current_frame"], clips["video"][:, :1] / 127.5 - 1, atol=1e-6)
    pixels = inputs["strokes"][..., 2].sum((2, 3))  # of discs of a radius of 1.6, each of 9 pixels
    assert pixels.min() >= 4 and pixels.max() <= 4 * 9
    again = training_inputs(stage, clips, jax.random.key(0))[1].inputs
    np.testing.assert_array_equal(inputs["strokes"], again["strokes"])
    other = training_inputs(stage, clips, jax.random.key(1))[1].inputs
    assert np.abs(inputs["strokes"] - other["strokes"]).max() > 0
    with refused("strokes.field", "no 'control'", "annotate --kind flow"):
        training_inputs(stage, {"video": clips["video"]}, jax.random.key(0))


def test_a_request_has_strokes_of_each_frame_and_a_frame():
    pictures = np.asarray(batch(np.random.default_rng(3))["control"])
    ask = Request(("",) * 3, {"strokes": pictures})
    found = Conditioning().adding(CONDITION.of_request(STAGE, ask))
    np.testing.assert_array_equal(found.inputs["strokes"], displacements(jnp.asarray(pictures)))
    for given in (None, pictures[:2], np.repeat(pictures, 2, axis=1), pictures[..., :2]):
        with refused("strokes.shape", f"shape {list(np.shape(given))}", "[3, 2, height, width, 3]"):
            CONDITION.of_request(STAGE, Request(("",) * 3, {"strokes": given}))
    with refused("control.ControlMap.check_range", "strokes in [0, 2]"):
        CONDITION.of_request(STAGE, Request(("",) * 3, {"strokes": np.linspace(0, 2, 3 * 2 * 8 * 8 * 3).reshape(
            3, 2, 8, 8, 3)}))
    video = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, (3, 2, 16, 16, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    videos = SampledVideos(STAGE, keys, None, None, False, False, None, pixels=MaskedVideo(video, jnp.ones(1)))
    inputs = CONDITION.in_sampling(found, videos)["inputs"]
    np.testing.assert_array_equal(inputs["current_frame"], video[:, :1])
    nothing = dataclasses.replace(videos, pixels=None)
    with refused("strokes.frame", "none is given", "--image"):
        CONDITION.in_sampling(found, nothing)
    again = CONDITION.request_of(STAGE.network, [{"control": pictures[0]}])["strokes"]
    assert again.shape == (1, 2, 16, 16, 3) and CONDITION.request_of(STAGE.network, [{}]) == {}
    drawn, flow = displacements(jnp.asarray(again[0])), displacements(jnp.asarray(pictures[0]))
    kept = np.asarray(drawn[..., 2] > 0)
    assert kept.any() and not kept.all()
    assert {tuple(v) for v in np.asarray(drawn)[kept].round(4)} <= {
        tuple(v) for v in np.asarray(flow).reshape(-1, 3).round(4)}


def test_a_network_of_pixels_sees_strokes_as_channels():
    """Without a frame or the flow: another network than that which completes them."""
    stage = Stage(name="base", video=dataclasses.replace(STAGE.video, frames=4), process=STAGE.process,
                  network=UNet(levels=(Level(channels=8),), conditions=(Input(name="strokes", width=3),)))
    assert CONDITION.shapes(stage, Sizes()) == {"inputs/strokes": ((4, 16, 16, 3), jnp.float32)}
    clips = batch(np.random.default_rng(5))
    clips = {name: jnp.concatenate([x, x], axis=1) for name, x in clips.items()}
    assert set(training_inputs(stage, clips, jax.random.key(0))[1].inputs) == {"strokes", "flow"}


def test_windows_cut_strokes_and_flow_with_the_video():
    """The video is the picture of the flow itself, so that both agree wherever the window lies."""
    flow = batch(np.random.default_rng(6))["control"]
    stage = Stage(name="base", video=STAGE.video, process=STAGE.process, training=Training(crop=(8, 8)),
                  source=LowResolution(frames=2, height=8, width=8), network=UNet(
                      levels=(Level(channels=8),), low_resolution=True, conditions=(Input(name="strokes", width=3),)))
    x, conditioning, _ = training_inputs(stage, {"video": flow, "control": flow}, jax.random.key(0))
    np.testing.assert_allclose(conditioning.inputs["flow"], displacements((x + 1) / 2), atol=1e-5)
    keys = jax.random.split(jax.random.split(jax.random.key(0))[1], 3)
    whole, corners = drawn_for_clips(stage.network, keys, displacements(flow)), 2 * draw_corners(keys, stage)
    assert np.unique(corners).size > 1
    for strokes, drawn, (row, column) in zip(conditioning.inputs["strokes"], whole, np.asarray(corners), strict=True):
        np.testing.assert_array_equal(strokes, drawn[:, row : row + 8, column : column + 8])


def test_strokes_enter_as_channels_alone():
    assert Input(name="strokes", width=3, enters="channels").way == "channels"
    with refused("Input.enters", "'residuals' of 'strokes'", "permitted: channels, None"):
        Input(name="strokes", width=3, enters="residuals")
