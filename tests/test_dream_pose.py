"""DreamPose in miniature: what its networks begin as, see and leave out, and the whole way through its phases."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import vdm_jax
from tests.refusals import refused
from tests.tiny_systems import train
from tests.training.latents import AUTOENCODER, random_params, write_model
from tests.weights.folders import tensors_of, write
from vdm_jax.commands.configs import config_folder, load_config, load_module
from vdm_jax.commands.main import main
from vdm_jax.conditions.inputs import Input, check_uncut
from vdm_jax.data.picture_encoding import PictureEncoder
from vdm_jax.evaluation.reconstruction import finish_autoencoder
from vdm_jax.generation.long_video.plan import Autoregressive
from vdm_jax.generation.one_stage import stage_denoiser
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.networks.picture_adapter import PictureAdapter, PictureAdapterNetwork
from vdm_jax.runs.records import read_records
from vdm_jax.stages.options import Windows
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.training.autoencoder_loop import AutoencoderTrainer
from vdm_jax.training.loop import Trainer
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png, write_video
from vdm_jax.weights.latent_inflation import plan_latent_inflation
from vdm_jax.weights.pretrained import load_imported

TINY = load_module(config_folder() / "dream_pose" / "_tiny.py")
STAGE, = TINY.frames(AUTOENCODER).stages
POSES = next(entry for entry in STAGE.network.conditions if entry.name == "control")


def test_a_window_of_maps_is_those_of_the_frames_around_each():
    maps = np.arange(6 * 3, dtype=np.float32).reshape(1, 6, 1, 1, 3)
    found = POSES.around(jnp.asarray(maps))
    assert found.shape == (1, 6, 1, 1, 10) and POSES.stacked == 10
    for frame in range(6):
        seen = [frame + step if 0 <= frame + step < 6 else frame for step in (-2, -1, 0, 1, 2)]
        np.testing.assert_array_equal(found[0, frame, 0, 0], maps[0, seen, 0, 0, :2].ravel())
    whole = Input(name="control", width=3, enters="channels", window=5)  # of all channels: 15
    assert whole.stacked == whole.around(jnp.asarray(maps)).shape[-1] == 15
    for wrong in ({"window": 4}, {"channels": 4}, {"enters": "residuals"}):
        with refused("Input.window", "permitted: "):
            Input(**{"name": "control", "width": 3, "enters": "channels", "window": 5} | wrong)


def test_videos_whose_maps_see_their_neighbours_are_made_at_once():
    with refused("Input.window", "Stage 'base'", "sampling.windows=", "Input.window=5 of 'control'", "Input.window=1"):
        dataclasses.replace(STAGE, sampling=dataclasses.replace(STAGE.sampling, windows=Windows(frames=2, overlap=1)))
    with refused("Input.window", "stage 'base': frames=6 in segments of 3", "Input.window=5 of 'control'"):
        Autoregressive(overlap=1).check(STAGE, STAGE.sampling, 6)
    near = dataclasses.replace(POSES, window=1)
    conditions = tuple(near if entry is POSES else entry for entry in STAGE.network.conditions)
    check_uncut(conditions, "any parts")


def test_the_adapter_begins_as_the_states_and_is_two_affine_maps():
    """By hand, as the authors' code has it: maxima, a map of the positions, a map of the tokens."""
    rng, layer = np.random.default_rng(0), PictureAdapterNetwork(TINY.ADAPTER)
    states, latents = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 1, 5, 6), (2, 1, 8, 8, 4)))
    begun = layer.init(jax.random.key(0), states, latents)
    np.testing.assert_array_equal(layer.apply(begun, states, latents), states)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), begun)
    given = {name: {k: np.asarray(v) for k, v in part.items()} for name, part in params["params"].items()}
    halved = np.asarray(latents)[:, 0].reshape(2, 4, 2, 4, 2, 4).max((2, 4)).reshape(2, 16, 4)
    rows = halved.swapaxes(1, 2) @ given["latents"]["kernel"] + given["latents"]["bias"]
    tokens = np.concatenate([states[:, 0], rows], axis=1)
    wanted = np.einsum("bmc,mn->bnc", tokens, given["mix"]["kernel"]) + given["mix"]["bias"][:, None]
    np.testing.assert_allclose(layer.apply(params, states, latents)[:, 0], wanted, rtol=1e-4, atol=1e-4)
    with refused("picture_adapter.PictureAdapterNetwork.__call__", "[B, 1, 5, 6]"):
        layer.apply(params, states[:, :, :4], latents)
    with refused("PictureAdapter.positions", "positions=1280", "16x16x4", "permitted: positions=64"):
        PictureAdapter().check("base", (16, 16, 4))
    with refused("LatentNetwork.picture_adapter", "permitted: "):
        dataclasses.replace(STAGE.network, conditions=(POSES,))


@pytest.fixture(scope="module")
def begun():
    """The first phase begun as a U-Net, with nothing zero in that, and the U-Net's parameters."""
    unet = random_params(TINY.UNET)
    new = jax.jit(lambda key: initial_params(STAGE, key))(jax.random.key(0))
    plan = plan_latent_inflation(STAGE.network.unet, new, TINY.UNET, unet)
    assert plan.new and all(name.startswith("/picture_adapter/") for name in plan.new) and not plan.zero_initialised
    return plan.apply(new, unet), unet


@pytest.fixture(scope="module")
def drawn(begun):
    """Parameters without zeros."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), begun[0])


def conditioned(seen=1.0, seed=0):
    """Random values of all that it is conditioned on, of two videos."""
    rng, example = np.random.default_rng(seed), example_conditioning(STAGE, 2)
    found = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), example)
    return found.adding({"scalars": {"reference_seen": jnp.full(2, seen)}})


Z = jnp.asarray(np.random.default_rng(7).normal(size=(2, 3, 8, 8, 4)), jnp.float32)


@functools.cache
def applied():
    return jax.jit(lambda p, c: network_module(STAGE.network).apply({"params": p}, Z, jnp.zeros((2, 3)), c))


def test_it_begins_as_the_unet_whose_text_is_the_picture(begun):
    """New columns of the first kernel are zero: poses change nothing yet."""
    params, unet = begun
    conditioning = conditioned()
    found = applied()(params, conditioning)
    level = STAGE.network.timesteps.timestep(jnp.zeros((2, 3)))
    plain = jax.jit(LatentUNetNetwork(TINY.UNET).apply)({"params": unet}, Z, level, conditioning.inputs["image_prompt"])
    np.testing.assert_allclose(found, plain, atol=1e-5)
    poses = {"inputs": {"control": 1 - conditioning.inputs["control"]}}
    np.testing.assert_array_equal(applied()(params, conditioning.adding(poses)), found)
    assert params["stem"]["kernel"].shape[3] == 14 and not np.asarray(params["stem"]["kernel"])[..., 4:, :].any()


def test_a_frame_sees_the_poses_around_it_and_no_other_frame(drawn):
    """Three frames are all within a window of five; with one of three, the first does not see the last pose."""
    conditioning = conditioned()
    control = conditioning.inputs["control"]
    other = conditioning.adding({"inputs": {"control": control.at[:, 2].add(1.0)}})
    change = np.abs(applied()(drawn, other) - applied()(drawn, conditioning)).max((0, 2, 3, 4))
    assert (change > 1e-3).all()
    third = conditioning.adding({"inputs": {"control": control.at[..., 2].add(1.0)}})  # a channel that does not enter
    np.testing.assert_array_equal(applied()(drawn, third), applied()(drawn, conditioning))
    near = dataclasses.replace(POSES, window=3)
    change = np.abs(near.around(other.inputs["control"]) - near.around(control)).max((0, 2, 3, 4))
    np.testing.assert_array_equal(change > 0, [False, True, True])


def test_a_picture_that_is_left_out_is_not_seen_at_all(drawn):
    """Neither by its latents nor by the encoder's states, in whose place is what came along for no picture."""
    null = jnp.asarray(np.random.default_rng(5).normal(size=(2, 1, 5, 6)), jnp.float32)
    one, two = (conditioned(seed=seed).adding({"inputs": {"null_image_prompt": null}}) for seed in (0, 1))
    two = two.adding({"inputs": {"control": one.inputs["control"]}})
    assert np.abs(applied()(drawn, one) - applied()(drawn, two)).max() > 1e-3
    one, two = (c.without_named(("reference_picture",)) for c in (one, two))
    np.testing.assert_array_equal(applied()(drawn, one), applied()(drawn, two))
    other = one.adding({"inputs": {"null_image_prompt": 2 * null}})
    assert np.abs(applied()(drawn, one) - applied()(drawn, other)).max() > 1e-3


def test_guidance_is_that_of_picture_then_pose(drawn):
    """x() + 8 (x(I) - x()) + 3 (x(I, p) - x(I)), of three estimates."""
    conditioning, logsnr = conditioned(), jnp.zeros(2)
    levels, plain = jnp.array([0.0]), dataclasses.replace(STAGE.sampling, terms=())
    by_names, alone = (jax.jit(lambda c, s=s: stage_denoiser(STAGE, drawn, c, s, levels)(Z, logsnr))
                       for s in (STAGE.sampling, plain))
    none, picture, both = (alone(conditioning.without_named(names)) for names in (
        ("reference_picture", "control"), ("control",), ()))
    wanted = none + 8 * (picture - none) + 3 * (both - picture)
    np.testing.assert_allclose(by_names(conditioning), wanted, rtol=1e-3, atol=1e-2)
    assert [(term.name, term.scale) for term in STAGE.sampling.terms] == [("reference_picture", 8), ("control", 3)]


def test_the_published_network_has_14_channels_and_50_tokens():
    stage, = load_config("dream_pose/frames").stages
    subject, = load_config("dream_pose/subject").stages
    assert stage.network == subject.network and stage.network.unet.in_channels == 14
    assert example_conditioning(stage).inputs["image_prompt"].shape == (1, 1, 50, 768)
    assert example_conditioning(stage).inputs["reference_picture"].shape == (1, 1, 80, 64, 4)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, poses, pictures, vectors and weights, and the three trained runs."""
    home, rng = tmp_path_factory.mktemp("dream"), np.random.default_rng(0)
    write_model(home / "unet.safetensors", TINY.UNET)
    write_model(home / "autoencoder.safetensors", AUTOENCODER)
    encoder = CLIPVision(size=8, patch=4, width=6, layers=1, heads=2, hidden=12, project=0)
    write(home / "image_encoder", encoder, tensors_of(encoder))
    for number in range(10):  # squares of a colour, at the place of a yellow one
        colour, left = rng.integers(60, 255, 3).astype(np.uint8), int(rng.integers(0, 8))
        video, pose = np.full((5, 16, 16, 3), 20, np.uint8), np.zeros((5, 16, 16, 3), np.uint8)
        for frame in range(5):
            x = (left + frame) % 8
            video[frame, 4:12, x : x + 8], pose[frame, 4:12, x : x + 8, :2] = colour, 255
        write_video(home / "videos" / f"{number}.mp4", video, 8, lossless=True)
        write_video(home / "poses" / f"{number}.mp4", pose, 8, lossless=True)
        write_png(home / "pictures" / f"{number}.png", np.full((16, 16, 3), colour))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["embed", "pictures", "--encoder", "image_encoder", "--out", "vectors", "--hidden", "--last"]) == 0
        for name, experiment, trainer in (
                ("frames_run", TINY.frames(AUTOENCODER), Trainer),
                ("subject_run", TINY.subject(AUTOENCODER, "frames_run"), Trainer),
                ("decoder_run", TINY.decoder(AUTOENCODER), AutoencoderTrainer)):
            train(experiment, home / name, trainer)
        finish_autoencoder(home / "decoder_run", experiment, experiment.stages[0], devices=jax.devices()[:1])
    return home


def test_vectors_are_the_states_of_the_last_layer(home):
    encoder = PictureEncoder(home / "image_encoder")
    pictures = [Image.open(home / "pictures" / "0.png")]
    stored = np.load(home / "vectors" / "0.npy")
    np.testing.assert_allclose(stored, encoder(pictures, True, last=True).vectors[0], atol=1e-5)
    assert stored.shape == (5, 6) and np.abs(stored - encoder(pictures, True).vectors[0]).max() > 1e-2
    assert json.loads((home / "vectors" / "image_prompts.json").read_text())["last"] is True


def test_phases_lower_their_losses_and_restore(home, monkeypatch):
    monkeypatch.chdir(home)
    for name, stage, count in (("frames_run", "base", 20), ("decoder_run", "autoencoder", 5)):
        losses = [record["loss"] for record in read_records(home / name / stage) if "loss" in record]
        assert np.mean(losses[-count:]) < np.mean(losses[:count]), name
    first, second = (flatten_dict(vdm_jax.load(name, jax.devices()[:1]).params["base"], sep="/")
                     for name in ("frames_run", "subject_run"))
    assert np.abs(first["stem/kernel"][..., 4:, :]).max() > 1e-3  # poses have come in
    assert np.abs(first["picture_adapter/mix/kernel"][5:]).max() > 1e-3  # and latents
    assert 0 < np.abs(second["out/kernel"] - first["out/kernel"]).max() < 0.1
    before, after = (flatten_dict(load_imported(path).params, sep="/") for path in (
        "autoencoder.safetensors", "decoder_run/autoencoder/autoencoder.safetensors"))
    assert {name.split("/")[0] for name in before if not np.array_equal(before[name], after[name])} == {"decoder"}


def test_a_picture_and_poses_make_a_video_by_the_tuned_decoder_too(home, monkeypatch):
    monkeypatch.chdir(home)
    found = {}
    for picture, poses in ((0, 0), (1, 0), (0, 1)):
        out = f"{picture}{poses}.gif"
        assert main(["sample", "subject_run", "--reference", f"pictures/{picture}.png", "--image-prompt",
                     f"pictures/{picture}.png", "--control", f"poses/{poses}.mp4", "--out", out]) == 0
        found[picture, poses] = VideoReader(out).frames(range(3)).astype(int)
    assert found[0, 0].shape == (3, 16, 16, 3)
    assert min(np.abs(found[0, 0] - found[other]).max() for other in ((1, 0), (0, 1))) > 2
    generator = vdm_jax.load("subject_run", jax.devices()[:1])
    decoder = load_imported("decoder_run/autoencoder/autoencoder.safetensors").params
    tuned = generator.of(generator.experiment, autoencoders={"base": decoder})
    given = {"references": {"picture": np.zeros((1, 16, 16, 3), np.uint8)},
             "control": np.zeros((1, 3, 16, 16, 3), np.uint8), "image_prompt": np.load("vectors/0.npy")[None]}
    videos, others = (one("", seed=1, **given).videos.astype(int) for one in (generator, tuned))
    assert np.abs(videos - others).max() > 0
