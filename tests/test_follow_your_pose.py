"""Follow Your Pose in miniature: what its networks begin as, see and leave out, and the whole way through training."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vdm_jax
from tests.parallel.test_table import golden_file
from tests.refusals import refused
from tests.tiny_systems import train, write_squares
from tests.training.latents import AUTOENCODER, random_params, write_model
from vdm_jax.commands.configs import config_folder, load_config, load_module
from vdm_jax.commands.main import main
from vdm_jax.conditions.inputs import Input
from vdm_jax.networks.blocks.temporal import LowRankTemporalConvolution
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_unet import LATENT_UNET_FOLLOW_YOUR_POSE
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.runs.records import read_records
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.video.reading import VideoReader
from vdm_jax.weights import model_kinds
from vdm_jax.weights.latent_inflation import plan_latent_inflation

TINY = load_module(config_folder() / "follow_your_pose" / "_tiny.py")
IMAGES, VIDEOS = (experiment.stages[0] for experiment in (
    TINY.images(AUTOENCODER), TINY.videos(AUTOENCODER, "images_run")))


def test_a_convolution_of_low_rank_is_two_after_each_other():
    """Frames of the two kernels by hand; at first it is the identity, on frames split over devices too."""
    rng, layer = np.random.default_rng(0), LowRankTemporalConvolution(2)
    x = jnp.asarray(rng.normal(size=(1, 4, 1, 2, 3)), jnp.float32)
    begun = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(begun, x), x)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), begun)
    down, up = (params["params"][name]["kernel"][:, 0, 0] for name in ("down", "up"))
    wanted, inside = np.array(x), np.zeros((4, 2, 2))
    for kernel, seen, out in ((down, x[0, :, 0], inside), (up, inside, wanted[0, :, 0])):
        for frame in range(4):
            for tap in range(3):
                if 0 <= frame + tap - 1 < 4:
                    out[frame] += np.asarray(seen[frame + tap - 1] @ kernel[tap])
    np.testing.assert_allclose(layer.apply(params, x), wanted, atol=1e-5)
    with jax.set_mesh(make_mesh(MeshSpec(data=1, context=2), jax.devices()[:2])):
        np.testing.assert_allclose(jax.jit(layer.apply)(params, x), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def begun():
    """The first stage, none of whose parameters is zero, and the second one begun as that."""
    shapes = jax.eval_shape(lambda: initial_params(IMAGES, jax.random.key(0)))
    rng = np.random.default_rng(1)
    first = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes)
    new = jax.eval_shape(lambda: initial_params(VIDEOS, jax.random.key(0)))
    plan = plan_latent_inflation(VIDEOS.network.unet, new, IMAGES.network.unet, first)
    drawn = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), new)
    return first, plan.apply(drawn, first), plan


def conditioned(stage, seed=0):
    """Random values of all that it is conditioned on."""
    rng = np.random.default_rng(seed)
    found = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), example_conditioning(stage, 2))
    return dataclasses.replace(found, text_mask=jnp.ones(found.text_mask.shape, bool))


def without_poses(conditioning):
    return dataclasses.replace(conditioning, inputs={})


@functools.cache
def applied(network):
    return jax.jit(lambda p, z, c: network_module(network).apply({"params": p}, z, jnp.zeros(2), c))


def run(stage, params, conditioning, frames=1):
    z = jnp.asarray(np.random.default_rng(7).normal(size=(2, frames, 8, 8, 4)), jnp.float32)
    return applied(stage.network)(params, z, conditioning)


def test_the_second_stage_begins_as_the_first_with_its_encoder(begun):
    """Of single frames; what is new joins frames and ends in zeros."""
    first, second, plan = begun
    assert {name.split("/")[3].removeprefix("norm_") for name in (*plan.new, *plan.zero_initialised)} == {
        "temporal_attention", "temporal_convolution"}
    conditioning = conditioned(IMAGES)
    np.testing.assert_allclose(run(VIDEOS, second, conditioning), run(IMAGES, first, conditioning), atol=1e-5)
    black = conditioning.adding({"inputs": {"control": 0 * conditioning.inputs["control"]}})
    assert np.abs(run(VIDEOS, second, conditioning) - run(VIDEOS, second, black)).max() > 1e-3


def test_clips_without_poses_are_seen_without_the_encoder(begun):
    """Not as a black map, of which the encoder makes something: its parameters change nothing."""
    _, second, _ = begun
    conditioning = conditioned(VIDEOS)
    found = run(VIDEOS, second, without_poses(conditioning), frames=3)
    black = conditioning.adding({"inputs": {"control": 0 * conditioning.inputs["control"]}})
    assert np.abs(found - run(VIDEOS, second, black, frames=3)).max() > 1e-3
    other = {**second, "control_net_control": jax.tree.map(lambda a: 2 * a, second["control_net_control"])}
    np.testing.assert_array_equal(run(VIDEOS, other, without_poses(conditioning), frames=3), found)
    quiet = {"scalars": {"control_scale": jnp.zeros(2)}}  # as a factor of 0
    np.testing.assert_allclose(run(VIDEOS, second, conditioning.adding(quiet), frames=3), found, atol=1e-6)
    with refused("conditioning.check_parts", "no 'control'"):
        run(IMAGES, begun[0], without_poses(conditioned(IMAGES)))


def test_what_cannot_be():
    with refused("LatentUNet.temporal_rank", "temporal_rank=4", "temporal_attention=False", "permitted: "):
        dataclasses.replace(TINY.UNET, temporal_rank=4)
    with refused("LatentUNet.temporal_rank", "temporal_rank=16", "widths=(8,)"):
        dataclasses.replace(TINY.VIDEO, temporal_rank=16)
    with refused("Input.optional", "optional=True", "channels"):
        Input(name="control", width=3, enters="channels", optional=True)
    with refused("Input.optional", "UNet.conditions", "'control'"):
        UNet(levels=(Level(channels=8),), conditions=(Input(name="control", width=3, optional=True),))
    with refused("model_kinds.kind_of", "temporal_rank"):
        model_kinds.kind_of(LATENT_UNET_FOLLOW_YOUR_POSE)


def test_sizes_and_stages_are_those_of_the_authors():
    """Their network is that of Tune-A-Video with the convolutions, and an encoder of 77,369,280 parameters."""
    (first,), (second,) = (load_config(f"follow_your_pose/{name}").stages for name in ("images", "videos"))
    convolutions = 2 * 3 * 160 * sum(LATENT_UNET_FOLLOW_YOUR_POSE.transformers.values())
    assert f": {909_120_004 + 77_369_280 + convolutions:,} parameters" in golden_file(
        "follow_your_pose/videos").read_text()
    assert convolutions == 11_980_800 and second.network.conditions[0].optional and second.shape[0] == 12
    assert (first.network.control_nets, first.network.text) == (second.network.control_nets, second.network.text)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, poses, embeddings and weights, and both trained runs."""
    home = tmp_path_factory.mktemp("pose")
    write_model(home / "unet.safetensors", TINY.UNET)
    write_model(home / "autoencoder.safetensors", AUTOENCODER)
    write_squares(home, 5, 2, "poses")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, experiment in (("images_run", TINY.images(AUTOENCODER)), (
                "videos_run", TINY.videos(AUTOENCODER, "images_run"))):
            train(experiment, home / name)
    return home


def test_both_stages_lower_their_losses_and_restore(home, monkeypatch):
    """Each trains what it is to train, and nothing else changes."""
    monkeypatch.chdir(home)
    for name in ("images_run", "videos_run"):
        losses = [record["loss"] for record in read_records(home / name / "base") if "loss" in record]
        assert np.mean(losses[-20:]) < np.mean(losses[:20]), name
    unet = flatten_dict(random_params(TINY.UNET), sep="/")
    first, second = (flatten_dict(vdm_jax.load(name, jax.devices()[:1]).params["base"], sep="/")
                     for name in ("images_run", "videos_run"))
    for name, leaf in first.items():
        if not name.startswith("control_net_control"):
            np.testing.assert_array_equal(leaf, unet[name])
        same = "/query/" not in name
        assert np.array_equal(second.pop(name), leaf) == same, name
    assert {name.split("/")[2].removeprefix("norm_") for name in second} == {"temporal_attention",
                                                                             "temporal_convolution"}
    assert all(np.abs(leaf).max() > 1e-4 for name, leaf in second.items() if "/temporal_convolution/up/" in name)


def test_poses_and_a_text_make_a_video(home, monkeypatch):
    monkeypatch.chdir(home)
    found = {}
    for number in ("0", "4", ""):
        poses = ["--control", f"poses/{number}.mp4"] if number else []
        assert main(["sample", "videos_run", "square 1", "--embeddings", "texts", *poses,
                     "--out", f"{number}_.gif"]) == 0
        found[number] = VideoReader(f"{number}_.gif").frames(range(3)).astype(int)
    assert found["0"].shape == (3, 16, 16, 3)
    assert min(np.abs(found["0"] - found["4"]).max(), np.abs(found["0"] - found[""]).max()) > 2
    generator = vdm_jax.load("videos_run", jax.devices()[:1])
    with refused("control.ControlMap.of_request", "control_scale", "without control"):
        generator("square 1", control_scale=0.5, embeddings=np.zeros((1, 2, 6), np.float32))
