"""Make-Your-Video in miniature: what its networks begin as and see, and the whole way through both stages."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vdm_jax
from tests.refusals import refused
from tests.tiny_systems import train, write_squares
from tests.training.latents import AUTOENCODER, random_params, write_model
from vdm_jax.commands.configs import config_folder, load_config, load_module
from vdm_jax.commands.main import main
from vdm_jax.conditions.inputs import Input
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_unet import LATENT_UNET_MAKE_YOUR_VIDEO
from vdm_jax.runs.records import read_records
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.video.reading import VideoReader
from vdm_jax.weights import model_kinds
from vdm_jax.weights.latent_inflation import plan_latent_inflation

TINY = load_module(config_folder() / "make_your_video" / "_tiny.py")
IMAGES, VIDEOS = (experiment.stages[0] for experiment in (
    TINY.images(AUTOENCODER), TINY.videos(AUTOENCODER, "images_run")))


def test_the_network_has_the_published_parameters():
    """The sum of three parts: 21 C^2 + 15 C of each residual block's convolutions, and two tables of 33 offsets in each
    of two attentions in the place of ModelScope's."""
    stage, = load_config("make_your_video/videos").stages
    assert stage.network.unet == LATENT_UNET_MAKE_YOUR_VIDEO and stage.shape == (16, 32, 32, 4)
    widths = 5 * [320] + 5 * [640] + 12 * [1280]  # of the residual blocks, the middle's two with them
    convolutions = sum(21 * width**2 + 15 * width for width in widths)
    transformers = 272_850_880 + 2 * 2 * 33 * 64 * len(LATENT_UNET_MAKE_YOUR_VIDEO.transformers)
    assert (convolutions, transformers) == (466_939_200, 272_986_048)
    assert 865_913_604 + convolutions + transformers == 1_605_838_852  # which tests/test_published_sizes.py counts


@pytest.mark.full
def test_each_part_of_the_network_has_its_published_parameters():
    sizes = {"_frames/": 0, "_motion/": 0, "": 0}
    for path, leaf in model_kinds.shapes(LATENT_UNET_MAKE_YOUR_VIDEO).items():
        sizes[next(part for part in sizes if part in path)] += leaf.size
    assert tuple(sizes.values()) == (466_939_200, 272_986_048, 865_913_604)


@pytest.fixture(scope="module")
def begun():
    """The first stage, none of whose parameters is zero, the second one begun as that, and how."""
    rng = np.random.default_rng(1)
    first, new = (jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), jax.eval_shape(
        lambda stage=stage: initial_params(stage, jax.random.key(0)))) for stage in (IMAGES, VIDEOS))
    plan = plan_latent_inflation(VIDEOS.network.unet, new, IMAGES.network.unet, first)
    return first, plan.apply(new, first), plan


@functools.cache
def applied(network):
    return jax.jit(lambda p, z, c: network_module(network).apply({"params": p}, z, jnp.zeros(1), c))


def run(stage, params, frames, change=None):
    """The prediction for random latents, text and depth, the same of every frame count."""
    rng, example = np.random.default_rng(7), example_conditioning(stage, 1)
    z, depth = (jnp.asarray(rng.uniform(size=(1, 6, 8, 8, channels)), jnp.float32)[:, :frames] for channels in (4, 3))
    conditioning = dataclasses.replace(
        example, embeddings=jnp.asarray(rng.normal(size=example.embeddings.shape), jnp.float32),
        text_mask=jnp.ones(example.text_mask.shape, bool), inputs={"control": change(depth) if change else depth})
    return applied(stage.network)(params, z, conditioning)


def test_the_second_stage_begins_as_the_first_frame_by_frame(begun):
    """The last of the five convolutions is the one that begins as zero, as do the transformers' maps back."""
    first, second, plan = begun
    assert {tuple(name.split("/")[2:]) for name in plan.zero_initialised} == {
        (layer, leaf) for layer in ("conv_4", "out") for leaf in ("kernel", "bias")}
    found = run(VIDEOS, second, 6)
    np.testing.assert_allclose(found, run(IMAGES, first, 6), atol=1e-5)
    drawn = jax.tree.map(lambda a: a + 0.1, second)  # of any number of frames, whatever that of training
    assert run(VIDEOS, drawn, 6).shape == (1, 6, 8, 8, 4)
    assert np.abs(run(VIDEOS, drawn, 6)[:, :3] - run(VIDEOS, drawn, 3)).max() > 1e-4  # norms see the whole clip


def test_depth_enters_from_minus_one_to_one_as_one_channel(begun):
    depth, = VIDEOS.network.conditions
    maps = jnp.asarray([0, 0.5, 1])[None, :, None, None, None] * jnp.ones((1, 3, 1, 2, 3))
    np.testing.assert_array_equal(depth.around(maps)[0, :, 0, :, 0], [[-1, -1], [0, 0], [1, 1]])
    assert depth.stacked == depth.around(maps).shape[-1] == 1
    first, _, _ = begun
    found = run(IMAGES, first, 2)
    np.testing.assert_array_equal(run(IMAGES, first, 2, lambda maps: maps.at[..., 1:].set(0)), found)
    changed = run(IMAGES, first, 2, lambda maps: maps.at[:, 1].set(1 - maps[:, 1])) - found
    assert np.abs(changed[:, 1]).max() > 1e-3 and np.abs(changed[:, 0]).max() == 0


def test_what_cannot_be():
    with refused("Input.signed", "signed=True", "'control'", "residuals", "permitted: channels"):
        Input(name="control", width=3, signed=True)
    with refused("Input.signed", "UNet.conditions", "'control'"):
        UNet(levels=(Level(channels=8),), conditions=(Input(name="control", width=3, enters="channels", signed=True),))
    with refused("LatentUNet", "no UNet3DConditionModel", "stem=True"):
        kind = model_kinds.kind_of(LATENT_UNET_MAKE_YOUR_VIDEO)
        kind.write(LATENT_UNET_MAKE_YOUR_VIDEO)
    with refused("capability.require", "cudnn", "relative value vectors"):
        dataclasses.replace(LATENT_UNET_MAKE_YOUR_VIDEO, attention_kernel="cudnn")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with videos, depth, embeddings and weights, and both trained runs."""
    home = tmp_path_factory.mktemp("depth")
    write_model(home / "unet.safetensors", TINY.TEXT)
    write_model(home / "autoencoder.safetensors", AUTOENCODER)
    write_squares(home, 8, 2, "depth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, experiment in (("images_run", TINY.images(AUTOENCODER)), (
                "videos_run", TINY.videos(AUTOENCODER, "images_run"))):
            train(experiment, home / name)
    return home


def test_both_stages_lower_their_losses_and_restore(home, monkeypatch):
    """The first trains all of the image network, whose new column sees depth, the second the temporal layers alone."""
    monkeypatch.chdir(home)
    for name in ("images_run", "videos_run"):
        losses = [record["loss"] for record in read_records(home / name / "base") if "loss" in record]
        assert np.mean(losses[-20:]) < np.mean(losses[:20]), name
    text = flatten_dict(random_params(TINY.TEXT), sep="/")
    first, second = (flatten_dict(vdm_jax.load(name, jax.devices()[:1]).params["base"], sep="/")
                     for name in ("images_run", "videos_run"))
    assert all(np.abs(first[name] - leaf).max() > 0 for name, leaf in text.items() if name != "stem/kernel")
    assert np.abs(first["stem/kernel"][:, :, :, 4]).max() > 1e-3
    for name, leaf in first.items():
        np.testing.assert_array_equal(second.pop(name), leaf)
    assert {name.split("/")[0].split("_")[-1] for name in second} == {"frames", "motion"}
    for last in ("_frames/conv_4/", "_motion/out/", "/offset_values/"):
        assert all(np.abs(leaf).max() > 1e-4 for name, leaf in second.items() if last in name)


def test_depth_and_a_text_make_a_video_and_a_longer_one(home, monkeypatch, capsys):
    """Of more frames than in training, with the depth of every frame, all at once."""
    monkeypatch.chdir(home)
    command = ["square 1", "--embeddings", "texts"]
    found = {}
    for number in ("0", "4"):
        assert main(["sample", "videos_run", *command, "--control", f"depth/{number}.mp4", "--num-frames", "8",
                     "--out", f"{number}_.gif"]) == 0
        found[number] = VideoReader(f"{number}_.gif").frames(range(8)).astype(int)
    assert found["0"].shape == (8, 16, 16, 3)
    assert np.abs(found["0"] - found["4"]).max((1, 2, 3)).min() > 2  # of every frame
    assert main(["sample", "videos_run", *command, "--control", "depth/0.mp4", "--out", "short.gif"]) == 0
    assert VideoReader("short.gif").frames(range(3)).shape == (3, 16, 16, 3)
    capsys.readouterr()
    for run_name, size, said in (("images_run", ("--num-frames", "8"), "window"), (
            "videos_run", ("--height", "32"), "one size"), ("videos_run", ("--num-frames", "9"), "8")):
        assert main(["sample", run_name, *command, "--control", "depth/0.mp4", *size, "--out", "no.gif"]) == 2
        assert said in capsys.readouterr().err
