"""Open latent U-Nets as networks of stages: a video network that begins as an image network, on a mesh and on one
device, with independent images and with a picture that the video begins with."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.latents import AUTOENCODER, random_params, write_model
from vdm_jax.cascade.generator import Generator
from vdm_jax.cascade.inputs import training_inputs
from vdm_jax.cascade.latent import Latent, decode, encode
from vdm_jax.cascade.observations import first_frame_known
from vdm_jax.cascade.options import Sampling, StartFile, Training
from vdm_jax.cascade.stage import Experiment, FirstFrame, Stage, VideoSpec
from vdm_jax.conditioning.conditioning import Conditioning
from vdm_jax.data.captioned_digits import CaptionedDigits
from vdm_jax.diffusion.beta_tables import ScaledLinearBetaSchedule
from vdm_jax.diffusion.levels import LogNormalSigma, UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import EDMSchedule
from vdm_jax.errors import UserError
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork, network_module
from vdm_jax.networks.latent_unet import LatentUNet, LatentUNetNetwork
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.training.starting import starting_weights
from vdm_jax.training.state import create_state, initial_params
from vdm_jax.training.step import compile_train_step

IMAGE = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_context=(False,), context_channels=6,
                   groups=4, convolve_tokens=False)
VIDEO = dataclasses.replace(IMAGE, temporal=True)
TABLE = ScaledLinearBetaSchedule()
TEMPORAL = ("/temporal_residual/", "/time/", "/mix/", "/places_")  # layers over frames
LATENT = Latent(autoencoder=AUTOENCODER)
BATCH = 8


def stage_of(unet=VIDEO, frames=3, **training):
    network = LatentNetwork(unet=unet, timesteps=TABLE, text=EmbeddedText(width=6))
    return Stage(
        name="base", video=VideoSpec(frames=frames, height=8, width=8), latent=LATENT, network=network,
        process=Process(schedule=TABLE, prediction="eps", level_sampling=UniformTimestep()),
        training=Training(batch_size=BATCH, learning_rate=1e-2, warmup_steps=1, ema_decay=0.8, **training),
        sampling=Sampling(steps=2, batch_size=2, guidance=1.0, threshold=None))


def batch_of(frames, images=0):
    rng = np.random.default_rng(0)
    batch = {"video": rng.integers(0, 256, (BATCH, frames, 8, 8, 3)).astype(np.uint8),
             "embeddings": rng.normal(size=(BATCH, 2, 6)).astype(np.float16), "text_mask": np.ones((BATCH, 2), bool)}
    if images:
        batch |= {"images": rng.integers(0, 256, (BATCH, images, 8, 8, 3)).astype(np.uint8),
                  "image_embeddings": rng.normal(size=(BATCH, images, 2, 6)).astype(np.float16),
                  "image_text_mask": np.ones((BATCH, images, 2), bool)}
    return batch


@pytest.fixture(scope="module")
def weights():
    return random_params(AUTOENCODER)


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    """A file of an image network, and its parameters."""
    path = tmp_path_factory.mktemp("files") / "unet.safetensors"
    return str(path), write_model(path, IMAGE).params


@pytest.fixture(scope="module")
def begun(image_file, tmp_path_factory):
    """A stage that begins as the image network and trains layers over frames, and how it begins."""
    stage = stage_of(trainable=TEMPORAL, start=StartFile(path=image_file[0]))
    inflation, source = starting_weights(stage, tmp_path_factory.mktemp("run"))
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    assert len(inflation.copied) + len(inflation.fresh) + len(inflation.silent) == len(jax.tree.leaves(shapes))
    return stage, inflation, source


def test_a_video_network_begins_as_an_image_network_frame_by_frame(begun, image_file):
    stage, inflation, source = begun
    params = inflation.apply(random_params(VIDEO, seed=1), source)  # nothing of its own is zero but what has to be
    rng = np.random.default_rng(0)
    z, level = jnp.asarray(rng.normal(size=(2, 5, 4, 4, 4)), jnp.float32), jnp.array([0.5, -2.0])
    text = jnp.asarray(rng.normal(size=(2, 3, 2, 6)), jnp.float32)
    conditioning = Conditioning(embeddings=text, text_mask=jnp.ones((2, 3, 2), bool))
    module = network_module(stage.network)
    run = jax.jit(lambda params, z: module.apply({"params": params}, z, level, conditioning, images=2))
    found = run(params, z)
    each = jnp.concatenate([jnp.repeat(text[:, :1], 3, axis=1), text[:, 1:]], axis=1)
    alone = jax.jit(lambda z: LatentUNetNetwork(IMAGE).apply(
        {"params": image_file[1]}, z, TABLE.timestep(level), each))
    np.testing.assert_allclose(found, alone(z), atol=1e-5)
    assert np.std(found) > 0.05
    # With layers over frames that do something, images still see neither the clip nor each other.
    busy = random_params(VIDEO, seed=1)
    before, after = run(busy, z), run(busy, z.at[0, 0].add(1).at[0, 4].add(1))
    assert np.abs(after - before)[0, 2].max() > 1e-3
    np.testing.assert_array_equal(after[0, 3], before[0, 3])


def test_a_sharded_step_in_latents_is_that_of_one_device_and_trains_layers_over_frames_alone(begun, weights):
    stage, inflation, source = begun
    results = {}
    for name, spec, devices in (("one", MeshSpec(data=1), 1), ("mesh", MeshSpec(data=2, fsdp=4), 8)):
        mesh = make_mesh(spec, jax.devices()[:devices])
        state = create_state(stage, 0, mesh, inflation, source)
        step, losses = compile_train_step(stage, mesh, (weights,)), []
        for _ in range(3):
            state, metrics = step(state, global_batch(batch_of(3), mesh))
            losses.append(metrics)
        results[name] = jax.device_get((state.params, losses))
    (params, losses), (sharded, other) = results["one"], results["mesh"]
    for a, b in zip(losses, other, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-4)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(sharded), strict=True):
        # Adam divides by the gradient's size: where that is tiny, rounding decides the direction of a step of 1e-2.
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert optax.tree.norm(a - b) <= 0.02 * max(optax.tree.norm(a), 1), name
        if name in ("/".join(key.key for key in p) for p, _ in jax.tree_util.tree_leaves_with_path(source)):
            np.testing.assert_array_equal(a, _at(source, path), err_msg=name)  # as it came
    assert losses[-1]["loss"] < losses[0]["loss"]


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_targets_are_scaled_latents_of_clip_and_images(weights):
    stage, batch = stage_of(images_per_clip=2), batch_of(3, 2)
    x, conditioning, images = jax.jit(lambda b: training_inputs(stage, b, jax.random.key(0), weights))(batch)
    assert x.shape == (BATCH, 5, 4, 4, 4) and images == 2 and conditioning.embeddings.shape == (BATCH, 3, 2, 6)
    mode = dataclasses.replace(stage, latent=dataclasses.replace(LATENT, encode="mode"))
    clips = np.concatenate([batch["video"], batch["images"]], axis=1) / 127.5 - 1
    expected = encode(LATENT, weights, jnp.asarray(clips, jnp.float32))
    found = training_inputs(mode, batch, jax.random.key(0), weights)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(x - expected).max() > 1e-2  # drawn from the moments


# ---------------------------------------------------------------------------------------------- a picture to begin with


def pictured():
    """A stage in the manner of Stable Video Diffusion, and its image network's config."""
    unet = dataclasses.replace(VIDEO, in_channels=8, scalars=3, scalar_channels=8)
    network = LatentNetwork(unet=unet, timesteps=None, text=EmbeddedText(width=6), first_frame=True,
                            scalars=("fps", "motion", "noise"))
    return Stage(
        name="animate", video=VideoSpec(frames=3, height=8, width=8, fps=7), source=FirstFrame(), latent=LATENT,
        network=network, process=Process(schedule=EDMSchedule(sigma_max=700.0), prediction="edm", sigma_data=1.0,
                                         level_sampling=LogNormalSigma(mean=1.0, std=1.6)),
        sampling=Sampling(steps=2, batch_size=2, last_frame_guidance=2.0, threshold=None))


def test_a_clip_is_told_its_first_frame_its_noise_and_numbers(weights):
    stage, batch = pictured(), batch_of(3)
    _, conditioning, _ = training_inputs(stage, batch, jax.random.key(0), weights)
    first = encode(LATENT, weights, jnp.asarray(batch["video"][:, :1] / 127.5 - 1, jnp.float32), scaled=False)
    distance = np.sqrt(np.square(conditioning.image - first).mean((1, 2, 3, 4)))
    noise = conditioning.scalars["noise"]
    assert 0.01 < noise.min() < noise.max() < 0.3  # exp of N(-3, 0.5)
    assert np.corrcoef(distance, noise)[0, 1] > 0.7 and distance.max() < 1
    np.testing.assert_array_equal(conditioning.scalars["fps"], np.full(BATCH, 7.0))
    np.testing.assert_array_equal(conditioning.scalars["motion"], np.full(BATCH, 127.0))
    dropped = conditioning.without_text(jnp.arange(BATCH) == 1)
    assert not dropped.image[1].any() and not dropped.text_mask[1].any() and dropped.image[0].any()
    params = random_params(stage.network.unet)
    module = network_module(stage.network)
    z, level = jnp.ones((BATCH, 3, 4, 4, 4)), jnp.linspace(-4, 4, BATCH)
    found = jax.jit(lambda c: module.apply({"params": params}, z, level, c))(conditioning)
    stacked = jnp.concatenate([z, jnp.repeat(conditioning.image, 3, axis=1)], axis=-1)
    numbers = jnp.stack([jnp.full(BATCH, 6.0), jnp.full(BATCH, 127.0), noise], axis=1)
    expected = jax.jit(lambda x: LatentUNetNetwork(stage.network.unet).apply(
        {"params": params}, x, jnp.log(jnp.exp(-level / 2)) / 4, conditioning.embeddings, scalars=numbers))(stacked)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_picture_is_animated(weights):
    stage = pictured()
    experiment = Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=4))
    generator = Generator(experiment, {"animate": random_params(stage.network.unet)}, jax.devices()[:1],
                          {"animate": weights})
    text = np.ones((2, 1, 6), np.float32)
    known = first_frame_known(jnp.full((2, 8, 8, 3), 0.5), 3)
    out = generator(["a", "b"], embeddings=text, known=known)
    assert out.videos.shape == (2, 3, 8, 8, 3)
    other = generator(["a", "b"], embeddings=text, known=first_frame_known(jnp.full((2, 8, 8, 3), -0.5), 3))
    faster = generator(["a", "b"], embeddings=text, known=known, motion=20.0)
    assert (other.videos != out.videos).any() and (faster.videos != out.videos).any()
    for call, message in (
        (lambda: generator(["a", "b"], embeddings=text), "starts from 1 frames that no stage makes"),
        (lambda: generator(["a", "b"], embeddings=text, known=known._replace(mask=jnp.ones((2, 3, 1, 1, 1)))),
         "begins with a picture, and something else is known of its videos"),
        (lambda: generator.extend(["a"], frames=6, embeddings=text[:1]), "cannot be extended"),
        (lambda: Generator(experiment, generator.params), "works in latents and its autoencoder has no weights"),
    ):
        with pytest.raises(UserError, match=message):
            call()


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("change", "message"), [
    ({"heads": (4,)}, "LatentUNet.heads=(2,) of a network that is to begin as one with (4,)"),
    ({"widths": (16,)}, "/out/kernel [1, 3, 3, 8, 4] from [1, 3, 3, 16, 4]"),
    ({"classes": 3}, "LatentUNet.classes=0"),
])
def test_files_that_a_network_cannot_begin_as(change, message, tmp_path):
    write_model(tmp_path / "unet.safetensors", dataclasses.replace(IMAGE, **change))
    stage = stage_of(start=StartFile(path=str(tmp_path / "unet.safetensors")))
    with pytest.raises(UserError, match=re.escape(message)):
        starting_weights(stage, tmp_path)


def test_a_file_of_something_else(tmp_path):
    write_model(tmp_path / "vae.safetensors", AUTOENCODER)
    with pytest.raises(UserError, match="holds a Autoencoder; permitted: a LatentUNet"):
        starting_weights(stage_of(start=StartFile(path=str(tmp_path / "vae.safetensors"))), tmp_path)


def test_pieces_give_the_whole(weights):
    """An autoencoder that works frame by frame may see them one by one; tiles are close to the whole."""
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16, 3)), jnp.float32)
    latents = encode(LATENT, weights, video)
    pieces = dataclasses.replace(LATENT, encode_frames=2, decode_frames=1)
    np.testing.assert_allclose(encode(pieces, weights, video), latents, atol=1e-5)
    out = decode(LATENT, weights, latents)
    np.testing.assert_allclose(decode(pieces, weights, latents), out, atol=1e-5)
    assert out.shape == video.shape and np.abs(out).max() <= 1
    tiles = dataclasses.replace(LATENT, tile=(8, 12), overlap=4)
    assert encode(tiles, weights, video).shape == latents.shape == (2, 3, 8, 8, 4)
    assert decode(tiles, weights, latents).shape == video.shape
