"""Control maps: their values from batches, requests and clips, what cuts them, and which networks take them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import AUTOENCODER, random_params
from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, Request
from vdm_jax.conditions.control import at_step, of_last_steps
from vdm_jax.conditions.inputs import Input
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.pipeline import FlipAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.prompts import of_frames, request_of, requested_conditioning
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.control_net import ControlNet, control_net_of
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_LVDM, LatentUNet
from vdm_jax.planning.inputs import training_batch
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import example_conditioning
from vdm_jax.stages.stage import LowResolution, Stage, VideoSpec
from vdm_jax.video.edges import edges

UNET_CONFIG = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,),
                         token_channels=6, groups=4)
LATENT = Latent(autoencoder=AUTOENCODER)  # of two pixels a side
BOTH = (Input(name="control", width=3), Input(name="edges", width=1))
NETWORK = LatentNetwork(unet=UNET_CONFIG, conditions=BOTH, control_nets=(
    control_net_of(UNET_CONFIG, hint_widths=(2, 4)), control_net_of(UNET_CONFIG, hint_widths=(2, 4), hint_channels=1)))


def stage_of(**changes):
    values = {"name": "base", "video": VideoSpec(frames=2, height=8, width=8), "latent": LATENT, "network": NETWORK,
              "process": Process(), "sampling": Sampling(threshold=None)}
    return Stage(**values | changes)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (4, 4, 16, 16, 3)).astype(np.uint8) for name in ("video", "control")}


def smaller(video):
    """Every second frame in blocks of two pixels."""
    return video[:, ::2].reshape(4, 2, 8, 2, 8, 2, 3).mean((3, 5))


def test_branches_see_maps_in_pixels_and_channels_those_of_the_latents(batch):
    weights = random_params(AUTOENCODER)
    x, conditioning, _ = training_inputs(stage_of(), batch, jax.random.key(0), weights)
    assert x.shape == (4, 2, 4, 4, 4)
    np.testing.assert_allclose(conditioning.inputs["control"], smaller(batch["control"]) / 255, atol=1e-5)
    expected = edges(jnp.asarray(smaller(batch["video"]) / 127.5 - 1, jnp.float32))
    np.testing.assert_allclose(conditioning.inputs["edges"], expected, atol=1e-5)
    stacked = dataclasses.replace(NETWORK, unet=dataclasses.replace(UNET_CONFIG, in_channels=7), control_nets=(),
                                  conditions=(Input(name="control", width=3, enters="channels"),))
    stage = stage_of(network=stacked)
    _, conditioning, _ = training_inputs(stage, batch, jax.random.key(0), weights)
    np.testing.assert_allclose(conditioning.inputs["control"], smaller(batch["control"]).reshape(
        4, 2, 4, 2, 4, 2, 3).mean((3, 5)) / 255, atol=1e-5)
    assert example_conditioning(stage).inputs["control"].shape == (1, 2, 4, 4, 3)
    assert {name: x.shape[1:] for name, x in example_conditioning(stage_of()).inputs.items()} == {
        "control": (2, 8, 8, 3), "edges": (2, 8, 8, 1)}


def test_planning_and_configs_know_it(batch):
    planned, _ = training_batch(stage_of(), CaptionedDigits(size=16, frames=4), 4, 1)
    assert {name: (x.shape, x.dtype) for name, x in planned.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()}  # edges need no field
    assert from_json(Stage, to_json(stage_of())) == stage_of()
    old = to_json(stage_of(network=LatentNetwork(unet=UNET_CONFIG))).replace(',\n  "control_nets": []', "")
    assert "control_nets" not in old and from_json(Stage, old).network.control_nets == ()


def test_branches_are_rematerialised_like_the_unet():
    full = NETWORK.rematerialised("full")
    assert full.remat == "full" and {net.unet.remat for net in full.control_nets} == {"full"}
    assert full.rematerialised("none") == NETWORK


def test_windows_parts_and_flips_cut_it_with_the_video(batch):
    """The map is the video itself, so that both agree wherever the window lies."""
    network = UNet(levels=(Level(channels=8),), low_resolution=True,
                   conditions=(Input(name="control", width=3, enters="channels"),))
    stage = stage_of(network=network, latent=None, video=VideoSpec(frames=4, height=16, width=16),
                     source=LowResolution(frames=4, height=8, width=8), training=Training(crop=(8, 8), frames=2))
    x, conditioning, _ = training_inputs(stage, batch | {"control": batch["video"]}, jax.random.key(0))
    assert x.shape == (4, 2, 8, 8, 3)
    np.testing.assert_allclose(conditioning.inputs["control"], (x + 1) / 2, atol=1e-5)
    part = conditioning.window(jnp.array(1), 1, 2)
    np.testing.assert_array_equal(part.inputs["control"], conditioning.inputs["control"][:, 1:])
    clip = {name: x[0] for name, x in batch.items()} | {"caption": "a rocket"}
    flipped = FlipAugmentation(probability=1.0)(clip, np.random.default_rng(0))
    for name in batch:
        np.testing.assert_array_equal(flipped[name], clip[name][:, :, ::-1])


def test_a_request_is_like_a_batch_and_null_is_black(batch):
    stage = stage_of()
    given = request_of(stage, [{name: x[i] for name, x in batch.items()} for i in range(4)])
    np.testing.assert_array_equal(given["edges"], batch["video"])
    asked = requested_conditioning(stage, Request(("",) * 4, given))
    _, conditioning, _ = training_inputs(stage, batch, jax.random.key(0), random_params(AUTOENCODER))
    for name in ("control", "edges"):
        np.testing.assert_allclose(asked.inputs[name], conditioning.inputs[name], atol=1e-6)
        null = CONDITIONS[name].null(asked, jnp.array([True, False, False, False]))["inputs"][name]
        assert not null[0].any() and (null[1:] == asked.inputs[name][1:]).all()
    floats = requested_conditioning(stage, Request(("",) * 4, given | {
        "control": given["control"].astype(np.float32) / 255, "edges": given["edges"].astype(np.float32) / 127.5 - 1}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), floats.inputs, asked.inputs)
    with refused("control.ControlMap.check_range", "[-1, 0.5]", "'base'", "[0, 1]"):
        requested_conditioning(stage, Request(("",), {"control": np.linspace(-1, 0.5, 384).reshape(1, 2, 8, 8, 3)}))
    with refused("inputs.InputCondition.of_request", "control", "[]", "[4, frames, height, width, 3]"):
        requested_conditioning(stage, Request(("",) * 4, {"edges": given["edges"]}))


def test_blocks_of_a_longer_video_have_the_maps_of_their_frames():
    maps = np.arange(7)[None, :, None, None, None] * np.ones((1, 1, 8, 8, 3), np.uint8)
    request = Request(("",), {"control": maps, "edges": maps})
    part = of_frames(stage_of(), request, 4, 4, 7)
    np.testing.assert_array_equal(part.get("control")[0, :, 0, 0, 0], [4, 5, 6, 6])
    with refused("prompts.of_frames", "control", "[1, 7, 8, 8, 3]", "9"):
        of_frames(stage_of(), Request(("",), {"control": maps}), 0, 4, 9)


def test_intervals_are_shares_of_the_steps_that_are_made():
    """Of 8 steps the last 4: a map in their first half acts in the fifth and the sixth of all."""
    given = dict(zip(("control_scale", "control_start", "control_end"), jnp.array([[2.0], [0.0], [0.5]]), strict=True))
    levels = jnp.arange(8.0)
    text = of_last_steps(Conditioning(scalars=given), 4, 8)
    scales = [float(at_step(text, levels[n:n + 1], levels).scalars["control_scale"][0]) for n in range(8)]
    assert scales == [0, 0, 0, 0, 2, 2, 0, 0]


@pytest.mark.parametrize(("make", "named"), [
    (lambda: dataclasses.replace(NETWORK, control_nets=NETWORK.control_nets[:1]),
     ("LatentNetwork.control_nets", "['control', 'edges']", "[3, 1]")),
    (lambda: dataclasses.replace(NETWORK, control_nets=NETWORK.control_nets[::-1]),
     ("LatentNetwork.control_nets", "[1, 3]")),
    (lambda: dataclasses.replace(NETWORK, control_nets=tuple(
        dataclasses.replace(net, unet=dataclasses.replace(net.unet, blocks=2)) for net in NETWORK.control_nets)),
     ("LatentNetwork.control_nets", "unet.blocks=2", "control_net_of")),
    (lambda: stage_of(network=dataclasses.replace(NETWORK, control_nets=tuple(
        dataclasses.replace(net, hint_widths=(2,)) for net in NETWORK.control_nets))),
     ("Stage.network.control_nets", "1 hint_widths", "reduce by 2")),
    (lambda: control_net_of(LATENT_UNET_LVDM), ("LatentUNet", "token_channels=0")),
    (lambda: ControlNet(unet=dataclasses.replace(UNET_CONFIG, temporal=True)), ("ControlNet.unet",)),
    (lambda: UNet(levels=(Level(channels=8),), conditions=(Input(name="edges", width=3),), resample_order="before"),
     ("UNet.conditions", "'edges' enters as residuals", "Input.enters")),
    (lambda: stage_of(training=Training(images_per_clip=1)),
     ("Stage.training.images_per_clip", "['control', 'edges']")),
])
def test_refused(make, named):
    with refused(*named):
        make()
