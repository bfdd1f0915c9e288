"""Animate Anyone in miniature: what its networks begin as, see and leave out, and the whole way through both stages."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vdm_jax
from tests.refusals import refused
from tests.tiny_systems import train
from tests.training.latents import AUTOENCODER, random_params, write_model
from tests.weights.folders import tensors_of, write
from vdm_jax.commands.configs import config_folder, load_module
from vdm_jax.commands.main import main
from vdm_jax.generation.one_stage import precomputed
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.networks.pose_guider import PoseGuider, PoseGuiderNetwork
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.runs.records import read_records
from vdm_jax.stages.options import GuidanceTerm
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.training.trainable import split
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png, write_video
from vdm_jax.weights.latent_inflation import plan_latent_inflation

TINY = load_module(config_folder() / "animate_anyone" / "_tiny.py")
IMAGES, VIDEOS = (experiment.stages[0] for experiment in (
    TINY.images(AUTOENCODER), TINY.videos(AUTOENCODER, "images_run")))


@pytest.fixture(scope="module")
def begun():
    """The first stage begun as a U-Net, with nothing zero in that, and the U-Net's parameters."""
    unet = random_params(TINY.UNET)
    new = initial_params(IMAGES, jax.random.key(0))  # each draw on its own: one program of all compiles for longer
    plan = plan_latent_inflation(IMAGES.network.unet, new, TINY.UNET, unet)
    return plan.apply(new, unet), unet


def conditioned(stage, batch=2, seen=1.0, seed=0):
    """Random values of all that it is conditioned on."""
    rng, example = np.random.default_rng(seed), example_conditioning(stage, batch)
    found = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), example)
    return found.adding({"scalars": {"reference_seen": jnp.full(batch, seen)}})


def run(stage, params, conditioning, frames=1):
    z = jnp.asarray(np.random.default_rng(7).normal(size=(2, frames, 8, 8, 4)), jnp.float32)
    return applied(stage.network)(params, z, conditioning), z


@functools.cache
def applied(network):
    return jax.jit(lambda p, z, c: network_module(network).apply({"params": p}, z, jnp.zeros(2), c))


def test_without_the_picture_it_is_the_unet_that_it_begins_as(begun):
    """Its pose guider adds zeros, and reference tokens that are not seen count nothing."""
    params, unet = begun
    conditioning = conditioned(IMAGES, seen=0.0)
    found, z = run(IMAGES, params, conditioning)
    level = IMAGES.network.timesteps.timestep(jnp.zeros(2))
    plain = jax.jit(LatentUNetNetwork(TINY.UNET).apply)(
        {"params": unet}, z, level, conditioning.inputs["image_prompt"])
    np.testing.assert_allclose(found, plain, atol=1e-5)
    poses = {"inputs": {"control": 1 - conditioning.inputs["control"]}}
    np.testing.assert_array_equal(run(IMAGES, params, conditioning.adding(poses))[0], found)
    seen, _ = run(IMAGES, params, conditioning.adding({"scalars": {"reference_seen": jnp.array([0.0, 1.0])}}))
    np.testing.assert_array_equal(seen[0], found[0])
    assert np.abs(seen[1] - found[1]).max() > 1e-3


def test_the_unconditional_estimate_does_not_change_with_the_picture(begun):
    params, conditioning = begun[0], conditioned(IMAGES)
    other = conditioning.adding({"inputs": {"reference_picture": -2 * conditioning.inputs["reference_picture"]}})
    one, two = (run(IMAGES, params, c)[0] for c in (conditioning, other))
    assert np.abs(one - two).max() > 1e-3
    one, two = (run(IMAGES, params, precomputed(IMAGES, IMAGES.sampling, params, c).without_text())[0]
                for c in (conditioning, other))
    np.testing.assert_array_equal(one, two)
    assert not conditioning.without_text().scalars["reference_seen"].any()


def test_features_are_made_once_per_video(begun):
    params, conditioning = begun[0], conditioned(IMAGES)
    params = {**params, "control_net_control": random_params_like(params["control_net_control"])}
    made = precomputed(IMAGES, IMAGES.sampling, params, conditioning)
    assert made.references.keys() == IMAGES.network.unet.referenced.keys() and made.features["control"][0].ndim == 5
    found, _ = run(IMAGES, params, made)
    np.testing.assert_allclose(found, run(IMAGES, params, conditioning)[0], atol=1e-5)
    changed = made.adding({"inputs": {name: 0 * made.inputs[name] for name in ("control", "reference_picture")}})
    np.testing.assert_array_equal(run(IMAGES, params, changed)[0], found)  # what was made counts
    by_names = dataclasses.replace(IMAGES.sampling, guidance=0.0, terms=(
        GuidanceTerm(name="reference_picture", scale=2.0),))
    assert not precomputed(IMAGES, by_names, params, conditioning).references


def random_params_like(tree):
    return jax.tree.map(lambda a: jnp.asarray(0.3 * np.random.default_rng(a.size).normal(size=a.shape), a.dtype), tree)


def test_the_first_stage_trains_all_that_has_a_gradient(begun):
    vectors = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 2, 6)), jnp.float32)  # one decides no attention
    params, conditioning = begun[0], conditioned(IMAGES).adding({"inputs": {"image_prompt": vectors}})
    params = {**params, "control_net_control": random_params_like(params["control_net_control"])}
    gradients = jax.grad(lambda p: (run(IMAGES, p, conditioning)[0] ** 2).sum())(params)
    trained, frozen = split(gradients, IMAGES.training.trainable)
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(frozen))
    still = [name for name, g in flatten_dict(trained, sep="/").items() if not np.abs(g).max()]
    assert not still and all(name == "reference_net" for name in frozen)


def test_motion_modules_are_all_that_the_second_stage_adds_and_begin_as_the_identity(begun):
    params = begun[0]
    new = initial_params(VIDEOS, jax.random.key(1))
    plan = plan_latent_inflation(VIDEOS.network.unet, new, IMAGES.network.unet, params)
    assert all("_motion/" in name for name in (*plan.new, *plan.zero_initialised)) and plan.zero_initialised
    video, conditioning = plan.apply(new, params), conditioned(VIDEOS)
    found, _ = run(VIDEOS, video, conditioning, frames=4)
    frames = dataclasses.replace(IMAGES, video=dataclasses.replace(IMAGES.video, frames=4))
    np.testing.assert_allclose(found, run(frames, params, conditioning, frames=4)[0], atol=1e-5)


def test_pose_guiders_of_other_sizes_and_sharded_ones(begun):
    """16/32/64/128 channels: 0.5 M parameters."""
    guider = PoseGuider()
    shapes = jax.eval_shape(lambda: PoseGuiderNetwork(guider).init(jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 514_896 and guider.factor == 8
    with refused("LatentNetwork.control_nets", "features=16", "(8, 8)"):
        dataclasses.replace(IMAGES.network, control_nets=(dataclasses.replace(TINY.GUIDER, features=16),))
    with refused("pose_guider.PoseGuiderNetwork.__call__", "(1, 1, 7, 8, 3)"):
        PoseGuiderNetwork(TINY.GUIDER).init(jax.random.key(0), jnp.zeros((1, 1, 7, 8, 3)))
    conditioning = conditioned(IMAGES)
    plain, _ = run(IMAGES, begun[0], conditioning)
    for spec in (MeshSpec(data=2), MeshSpec(fsdp=2)):
        with jax.set_mesh(make_mesh(spec, jax.devices()[:2])):
            np.testing.assert_allclose(run(IMAGES, begun[0], conditioning)[0], plain, atol=1e-5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, poses, pictures and weights, and both trained runs."""
    home, rng = tmp_path_factory.mktemp("animate"), np.random.default_rng(0)
    write_model(home / "unet.safetensors", TINY.UNET)
    write_model(home / "autoencoder.safetensors", AUTOENCODER)
    encoder = CLIPVision(size=8, patch=4, width=8, layers=1, heads=2, hidden=16, project=6)
    write(home / "image_encoder", encoder, tensors_of(encoder))
    for number in range(12):  # squares of a colour, at the place of a white one
        colour, left = rng.integers(60, 255, 3).astype(np.uint8), int(rng.integers(0, 8))
        video, pose = np.full((6, 16, 16, 3), 20, np.uint8), np.zeros((6, 16, 16, 3), np.uint8)
        for frame in range(6):
            x = (left + frame) % 8
            video[frame, 4:12, x : x + 8], pose[frame, 4:12, x : x + 8] = colour, 255
        write_video(home / "videos" / f"{number}.mp4", video, 8, lossless=True)
        write_video(home / "poses" / f"{number}.mp4", pose, 8, lossless=True)
        write_png(home / "pictures" / f"{number}.png", np.full((16, 16, 3), colour))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["embed", "pictures", "--encoder", "image_encoder", "--out", "vectors"]) == 0
        for name, experiment in (("images_run", TINY.images(AUTOENCODER)), (
                "videos_run", TINY.videos(AUTOENCODER, "images_run"))):
            train(experiment, home / name)
    return home


@pytest.mark.full
def test_both_stages_lower_their_losses_and_restore(home, monkeypatch):
    monkeypatch.chdir(home)
    for name, count in (("images_run", 5), ("videos_run", 30)):
        losses = [record["loss"] for record in read_records(home / name / "base") if "loss" in record]
        assert np.mean(losses[-count:]) < np.mean(losses[:count]), name
    first, second = (vdm_jax.load(name, jax.devices()[:1]).params["base"] for name in ("images_run", "videos_run"))
    flat = flatten_dict(second, sep="/")
    for name, leaf in flatten_dict(first, sep="/").items():
        np.testing.assert_array_equal(flat.pop(name), leaf)
    assert flat and all("_motion/" in name for name in flat)
    assert max(float(np.abs(leaf).max()) for name, leaf in flat.items() if "motion/out/kernel" in name) > 1e-4


@pytest.mark.full
def test_a_picture_and_poses_make_a_video(home, monkeypatch):
    monkeypatch.chdir(home)
    found = {}
    for number in (0, 1):
        assert main(["sample", "videos_run", "--reference", f"pictures/{number}.png", "--image-prompt",
                     f"pictures/{number}.png", "--control", "poses/0.mp4", "--out", f"{number}.gif"]) == 0
        found[number] = VideoReader(f"{number}.gif").frames(range(4)).astype(int)
    assert found[0].shape == (4, 16, 16, 3) and np.abs(found[0] - found[1]).max() > 2
    assert json.loads((home / "vectors" / "image_prompts.json").read_text())["hidden"] is False
