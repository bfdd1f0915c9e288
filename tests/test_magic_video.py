"""MagicVideo's key frames in miniature: what its network begins as and sees, and the whole way through training."""

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
from vdm_jax.commands.configs import config_folder, load_module
from vdm_jax.commands.main import main
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_unet import LATENT_UNET_MAGIC_VIDEO
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.runs.records import read_records
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.video.reading import VideoReader
from vdm_jax.weights import model_kinds
from vdm_jax.weights.latent_inflation import plan_latent_inflation

TINY = load_module(config_folder() / "magic_video" / "_tiny.py")
BEFORE, AFTER = (TINY.key_frames(AUTOENCODER, mask).stages[0] for mask in ("before", "after"))


@functools.cache
def applied(network):
    return jax.jit(lambda p, z, c: network_module(network).apply({"params": p}, z, jnp.zeros(1), c))


def inputs(stage, fps=8.0):
    """Random latents and text, at a rate."""
    rng, example = np.random.default_rng(7), example_conditioning(stage, 1)
    z = jnp.asarray(rng.normal(size=(1, 3, 8, 8, 4)), jnp.float32)
    return z, dataclasses.replace(
        example, embeddings=jnp.asarray(rng.normal(size=example.embeddings.shape), jnp.float32),
        text_mask=jnp.ones(example.text_mask.shape, bool), scalars={"fps": jnp.full(1, fps)})


@pytest.fixture(scope="module")
def begun():
    """An image network, the network of key frames as it begins with that, how, and with noise on its parameters."""
    image, rng = random_params(TINY.IMAGE), np.random.default_rng(1)
    new = initial_params(BEFORE, jax.random.key(0))
    plan = plan_latent_inflation(BEFORE.network.unet, new, TINY.IMAGE, image)
    params = plan.apply(new, image)
    return image, params, plan, jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), params)


def test_it_begins_as_the_image_network_at_any_rate(begun):
    image, params, plan, _ = begun
    z, conditioning = inputs(BEFORE)
    level = BEFORE.network.timesteps.timestep(jnp.zeros(1))
    wanted = LatentUNetNetwork(TINY.IMAGE).apply({"params": image}, z, level, conditioning.embeddings)
    for stage in (BEFORE, AFTER):
        np.testing.assert_allclose(applied(stage.network)(params, *inputs(stage, 4.0)), wanted, atol=1e-5)
    kinds = {name.split("/")[-1] for name in plan.new if "frame_" in name}
    assert kinds == {"frame_scale", "frame_shift"} and any("scalars_out" in name for name in plan.zero_initialised)


def test_a_frame_sees_no_later_one_and_its_number_and_the_rate(begun):
    """By attention; of a mask after the softmax later frames take their share of it."""
    params = begun[-1]
    found = {}
    for stage in (BEFORE, AFTER):
        run = functools.partial(applied(stage.network), params)
        z, conditioning = inputs(stage)
        found[stage] = run(z, conditioning)
        later = run(z.at[:, 2].add(1.0), conditioning) - found[stage]
        assert (np.abs(later[:, :2]).max() < 1e-5) == (stage is BEFORE) and np.abs(later[:, 2]).max() > 1e-3
        assert np.abs(run(z.at[:, 0].add(1.0), conditioning) - found[stage])[:, 2].max() > 1e-4
        assert np.abs(run(*inputs(stage, 4.0)) - found[stage]).max() > 1e-4
        same = run(jnp.broadcast_to(z[:, :1], z.shape), conditioning)  # of the same frame three times
        assert np.abs(same[:, 1] - same[:, 2]).max() > 1e-4
    assert np.abs(found[BEFORE] - found[AFTER]).max() > 1e-4


def test_the_network_is_stable_diffusion_and_what_it_lacks():
    """Adaptors of 16 frames, 4 C^2 + C of each temporal attention, and the map of the rate's code."""
    adaptors = 2 * 2 * 16 * (5 * 320 + 5 * 640 + 12 * 1280)
    attentions = sum(4 * width**2 + width for width in LATENT_UNET_MAGIC_VIDEO.transformers.values())
    rate = (256 + 1) * 1280 + (1280 + 1) * 1280
    assert f": {859_520_964 + adaptors + attentions + rate:,} parameters" in golden_file(
        "magic_video/key_frames").read_text()


def test_what_cannot_be():
    with refused("Directed.frames", "5 frames", "permitted: 3"):
        dataclasses.replace(BEFORE, video=dataclasses.replace(BEFORE.video, frames=5))
    with refused("Directed.frames", "2 in training", "permitted: 3"):
        dataclasses.replace(BEFORE, training=dataclasses.replace(BEFORE.training, frames=2, frame_rates=None))
    with refused("model_kinds.kind_of", "directed"):
        model_kinds.kind_of(BEFORE.network.unet)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, embeddings and weights, and a trained run."""
    home = tmp_path_factory.mktemp("magic")
    write_model(home / "unet.safetensors", TINY.IMAGE)
    write_model(home / "autoencoder.safetensors", AUTOENCODER)
    write_squares(home, 8, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train(TINY.key_frames(AUTOENCODER, "after"), home / "key_run")
    return home


def test_it_lowers_its_loss_and_restores(home, monkeypatch):
    monkeypatch.chdir(home)
    losses = [record["loss"] for record in read_records(home / "key_run" / "base") if "loss" in record]
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    params = flatten_dict(vdm_jax.load("key_run", jax.devices()[:1]).params["base"], sep="/")
    for name, leaf in params.items():
        if name.endswith("frame_scale"):
            assert np.abs(leaf - 1).max() > 1e-3 and np.abs(leaf[0] - leaf[2]).max() > 1e-3, name
        if "/temporal_attention/out/" in name or name.startswith("scalars_out"):
            assert np.abs(leaf).max() > 1e-4, name


def test_a_text_and_a_rate_make_a_video(home, monkeypatch):
    monkeypatch.chdir(home)
    found = {}
    for fps in ("8", "4"):
        assert main(["sample", "key_run", "square 1", "--embeddings", "texts", "--fps", fps,
                     "--out", f"{fps}.gif"]) == 0
        found[fps] = VideoReader(f"{fps}.gif").frames(range(3)).astype(int)
    assert found["8"].shape == (3, 16, 16, 3) and np.abs(found["8"] - found["4"]).max() > 0
