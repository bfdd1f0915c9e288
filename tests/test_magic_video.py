"""MagicVideo in miniature: what its networks begin as and see, and the whole way through the training of all three."""

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
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_unet import LATENT_UNET_MAGIC_VIDEO, LATENT_UNET_SD1
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.runs.records import read_records
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png
from vdm_jax.weights import model_kinds
from vdm_jax.weights.latent_inflation import plan_latent_inflation

TINY = load_module(config_folder() / "magic_video" / "_tiny.py")
CASCADE = TINY.cascade(AUTOENCODER, "pictures_run", "after")
BEFORE, AFTER = (TINY.key_frames(AUTOENCODER, mask).stages[0] for mask in ("before", "after"))


@functools.cache
def applied(network):
    return jax.jit(lambda p, z, c: network_module(network).apply({"params": p}, z, jnp.zeros(1), c))


def inputs(stage, fps=8.0):
    """Random latents, text and key frames, at a rate."""
    rng, example = np.random.default_rng(7), example_conditioning(stage, 1)
    z = jnp.asarray(rng.normal(size=(1, *stage.shape)), jnp.float32)
    given = {} if example.conditioning_frames is None else {
        "conditioning_frames": z[:, ::-1], "conditioning_mask": (jnp.arange(5) % 2 == 0)[:, None, None, None]
        * jnp.ones_like(example.conditioning_mask)}
    return z, dataclasses.replace(
        example, embeddings=jnp.asarray(rng.normal(size=example.embeddings.shape), jnp.float32),
        text_mask=jnp.ones(example.text_mask.shape, bool), scalars={"fps": jnp.full(1, fps)}, **given)


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


def adapted(unet, frames):
    """Parameters of a network that begins as Stable Diffusion 1.x and has clips of so many frames: with adaptors of
    them, 4 C^2 + C of each temporal attention, and the map of the rate's code."""
    adaptors = 2 * 2 * frames * (5 * 320 + 5 * 640 + 12 * 1280)
    attentions = sum(4 * width**2 + width for width in unet.transformers.values())
    return 859_520_964 + adaptors + attentions + (256 + 1) * 1280 + (1280 + 1) * 1280


@pytest.mark.parametrize("name, counts", [("key_frames", [0]), ("cascade", [0, 9 * LATENT_UNET_SD1.widths[0]])])
def test_the_networks_are_stable_diffusion_and_what_it_lacks(name, counts):
    """And the second one the column of the first kernel that sees the mask of the key frames."""
    text = golden_file(f"magic_video/{name}").read_text()
    for frames, more in zip((16, 61), counts, strict=False):
        assert f": {adapted(LATENT_UNET_MAGIC_VIDEO, frames) + more:,} parameters" in text


def test_the_stages_are_those_of_the_paper():
    """Frames and pixels, and which data they learn from; three new frames between two are ours."""
    base, between, final = load_config("magic_video/cascade").stages
    pictures, = load_config("magic_video/super_resolution").stages
    assert [str(stage.video) for stage in (base, between, final)] == ["16x256x256", "61x256x256", "61x1024x1024"]
    assert (base.shape, between.shape, final.shape) == ((16, 32, 32, 4), (61, 32, 32, 4), (61, 1024, 1024, 3))
    assert final.network == pictures.network and pictures.video.frames == final.training.frames == 1
    assert final.training.init_from.stage == pictures.name and final.latent is None


def test_a_frame_between_sees_the_key_frames_on_both_sides():
    """Which stand in the place of the noisy ones."""
    _, stage, _ = CASCADE.stages
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), jax.eval_shape(
        lambda: initial_params(stage, jax.random.key(0))))
    run, (z, given) = functools.partial(applied(stage.network), params), inputs(stage)
    found = run(z, given)
    np.testing.assert_array_equal(run(z.at[:, ::2].add(1.0), given), found)
    for key in (0, 2, 4):
        changed = run(z, given.replace(conditioning_frames=given.conditioning_frames.at[:, key].add(1.0))) - found
        assert np.abs(changed[:, 1]).max() > 1e-4 and np.abs(changed[:, 3]).max() > 1e-4, key


def test_what_cannot_be():
    with refused("Directed.frames", "5 frames", "permitted: 3"):
        dataclasses.replace(BEFORE, video=dataclasses.replace(BEFORE.video, frames=5))
    with refused("Directed.frames", "2 in training", "permitted: 3"):
        dataclasses.replace(BEFORE, training=dataclasses.replace(BEFORE.training, frames=2, frame_rates=None))
    with refused("model_kinds.kind_of", "directed"):
        model_kinds.kind_of(BEFORE.network.unet)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, pictures, embeddings and weights, and both trained runs."""
    home, rng = tmp_path_factory.mktemp("magic"), np.random.default_rng(0)
    write_model(home / "unet.safetensors", TINY.IMAGE)
    write_model(home / "autoencoder.safetensors", AUTOENCODER)
    write_squares(home, 12, 1)
    for number in range(10):
        picture = np.full((32, 32, 3), 20, np.uint8)
        y, x = rng.integers(0, 16, 2)
        picture[y : y + 16, x : x + 16] = 160
        write_png(home / "pictures" / f"{number}.png", picture)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train(TINY.pictures(), home / "pictures_run")
        train(CASCADE, home / "magic_run")
    return home


def losses(run, stage):
    return [record["loss"] for record in read_records(run / stage) if "loss" in record]


def test_all_stages_lower_their_losses_and_restore(home, monkeypatch):
    monkeypatch.chdir(home)
    pictures = losses(home / "pictures_run", "super_resolution")
    for found in (pictures, *(losses(home / "magic_run", stage) for stage in ("base", "interpolation"))):
        assert np.mean(found[-20:]) < np.mean(found[:20])
    frames = losses(home / "magic_run", "super_resolution")  # of clips, by what has learned pictures
    assert len(frames) == 10 and np.mean(frames) < np.mean(pictures[:10])
    restored = vdm_jax.load("magic_run", jax.devices()[:1]).params
    for stage, frames in (("base", 3), ("interpolation", 5)):
        for name, leaf in flatten_dict(restored[stage], sep="/").items():
            if name.endswith("frame_scale"):
                assert len(leaf) == frames and np.abs(leaf - 1).max() > 1e-3, name
                assert np.abs(leaf[0] - leaf[2]).max() > 1e-3, name
            if "/temporal_attention/out/" in name or name.startswith("scalars_out"):
                assert np.abs(leaf).max() > 1e-4, name
    assert np.abs(restored["interpolation"]["stem"]["kernel"][:, :, :, 4]).max() > 1e-3  # the mask's, which began as 0


def test_a_text_and_a_rate_make_a_video_through_all_stages(home, monkeypatch):
    monkeypatch.chdir(home)
    found = {}
    for fps in ("8", "4"):
        command = ["sample", "magic_run", "square 1", "--embeddings", "texts", "--fps", fps]
        assert main([*command, "--last", "base", "--out", f"{fps}.gif"]) == 0
        found[fps] = VideoReader(f"{fps}.gif").frames(range(3)).astype(int)
    assert found["8"].shape == (3, 16, 16, 3) and np.abs(found["8"] - found["4"]).max() > 0
    assert main([*command, "--out", "all.gif"]) == 0
    reader = VideoReader("all.gif")
    assert len(reader) == 5 and reader.frames(range(5)).shape == (5, 32, 32, 3)
    generator = vdm_jax.load("magic_run", jax.devices()[:1])
    made = generator(["square 1"], embeddings=np.zeros((1, 2, 6), np.float32), text_mask=np.ones((1, 2), bool), fps=4.0)
    assert made.fps == {"base": 4.0, "interpolation": 8.0, "super_resolution": 8.0}
    np.testing.assert_array_equal(made.stages["interpolation"][:, ::2], made.stages["base"])
    assert np.abs(np.diff(made.stages["interpolation"].astype(int), axis=1)).max((0, 2, 3, 4)).min() > 0
