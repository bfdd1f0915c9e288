"""Open latent U-Nets as networks of stages: a video network that begins as an image network, on a mesh and on one
device, with independent images and with a picture that the video begins with."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.refusals import refused
from tests.training.latents import AUTOENCODER, random_params, write_model
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.frame_masks import masked_first_frame
from vdm_jax.diffusion.beta_tables import ScaledLinearBetaSchedule
from vdm_jax.diffusion.levels import LogNormalSigma, UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import EDMSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.compiled import jit_sampling
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import EmbeddedText, Level, UNet
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import path_name
from vdm_jax.planning.flops import sampling_work, training_work
from vdm_jax.planning.inputs import sampling_inputs, training_batch
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import Latent, abstract_weights, decode, encode
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, FirstFrame, Stage, VideoSpec
from vdm_jax.training.init_from import starting_weights
from vdm_jax.training.state import TrainState, abstract_state, make_optimizer
from vdm_jax.training.step import compile_train_step, jit_train_step
from vdm_jax.training.trainable import split

IMAGE = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,),
                   token_channels=6, groups=4, use_linear_projection=True)
VIDEO = dataclasses.replace(IMAGE, temporal=True)
TABLE = ScaledLinearBetaSchedule()
TEMPORAL = ("/temporal_residual/", "/time/", "/mix/", "/places_")  # temporal layers
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
    """A stage that begins as the image network and trains temporal layers, and how it begins."""
    stage = stage_of(trainable=TEMPORAL, init_from=InitFromFile(path=image_file[0]))
    inflation, source = starting_weights(stage, tmp_path_factory.mktemp("run"))
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    begun = (*inflation.copied, *inflation.new, *inflation.zero_initialised)
    assert len(begun) == len(jax.tree.leaves(shapes))
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
    # With temporal layers that do something, images still see neither the clip nor each other.
    busy = random_params(VIDEO, seed=1)
    before, after = run(busy, z), run(busy, z.at[0, 0].add(1).at[0, 4].add(1))
    assert np.abs(after - before)[0, 2].max() > 1e-3
    np.testing.assert_array_equal(after[0, 3], before[0, 3])


def begun_state(stage, params, mesh):
    """A state of given parameters on a mesh, without compiling an initialisation."""
    moments = make_optimizer(stage.training).init(split(params, stage.training.trainable)[0])
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=moments, ema=params,
                       key=jax.random.key(3))

    def place(leaf, like):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.wrap_key_data(np.array(jax.random.key_data(leaf))), like.sharding)
        return jax.device_put(np.array(leaf), like.sharding)

    return jax.tree.map(place, state, abstract_state(stage, mesh))


def test_a_sharded_step_in_latents_is_that_of_one_device(weights):
    network = UNet(levels=(Level(channels=8, blocks=1, kernel=1),), patch=2, embedding_channels=16, groups=4,
                   out_channels=4)
    stage = Stage(name="base", video=VideoSpec(frames=2, height=8, width=8), latent=LATENT, network=network,
                  process=Process(), training=Training(batch_size=BATCH, learning_rate=1e-2, warmup_steps=1),
                  sampling=Sampling(threshold=None))
    shapes = jax.eval_shape(lambda: initial_params(stage, jax.random.key(0)))
    rng, results = np.random.default_rng(0), []
    params = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32), shapes)
    for spec, devices in ((MeshSpec(data=1), 1), (MeshSpec(data=2, fsdp=4), 8)):
        mesh = make_mesh(spec, jax.devices()[:devices])
        step = compile_train_step(stage, mesh, (weights,))
        state, metrics = step(begun_state(stage, params, mesh), global_batch({"video": batch_of(2)["video"]}, mesh))
        results.append(jax.device_get((optax.tree.get(state.opt_state, "mu"), metrics)))
    (moments, metrics), (sharded, other) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), moments, sharded)
    assert metrics["gradient_norm"] > 1e-3


@pytest.mark.full
def test_layers_over_frames_alone_are_trained_with_independent_images(begun, weights):
    stage, inflation, source = begun
    stage = dataclasses.replace(stage, training=dataclasses.replace(stage.training, images_per_clip=2))
    params = inflation.apply(random_params(VIDEO, seed=1), source)
    mesh = make_mesh(MeshSpec(data=1), jax.devices()[:1])
    state, step, losses = begun_state(stage, params, mesh), compile_train_step(stage, mesh, (weights,)), []
    for _ in range(8):
        state, metrics = step(state, global_batch(batch_of(3, 2), mesh))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    frozen = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(source)}
    after = jax.tree.leaves(state.params)
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(params), after, strict=True):
        assert path_name(path) not in frozen or np.array_equal(old, new), path_name(path)
    trained = split(state.params, stage.training.trainable)[0]
    names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)}
    assert not names & frozen and len(names) + len(frozen) == len(jax.tree.leaves(params))


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
    seen = {}

    def instead(call, arguments, options, context):
        if isinstance(context.module, LatentUNetNetwork) and context.method_name == "__call__":
            seen.update(options, x=arguments[0], level=arguments[1], context=arguments[2])
            return arguments[0][..., :4]
        return call(*arguments, **options)

    z, level = jnp.ones((BATCH, 3, 4, 4, 4)), jnp.linspace(-4, 4, BATCH)
    with nn.intercept_methods(instead):
        network_module(stage.network).apply({"params": {}}, z, level, conditioning)
    np.testing.assert_array_equal(seen["x"], jnp.concatenate([z, jnp.repeat(conditioning.image, 3, axis=1)], axis=-1))
    np.testing.assert_allclose(seen["level"], np.log(np.exp(-level / 2)) / 4, atol=1e-6)
    np.testing.assert_array_equal(seen["context"], conditioning.embeddings)
    np.testing.assert_array_equal(seen["scalars"], jnp.stack([jnp.full(BATCH, 6.0), jnp.full(BATCH, 127.0), noise], 1))


@pytest.mark.full
def test_a_picture_is_animated(weights):
    stage = pictured()
    experiment = Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=4))
    generator = Generator(experiment, {"animate": random_params(stage.network.unet)}, jax.devices()[:1],
                          {"animate": weights})
    text = np.ones((2, 1, 6), np.float32)
    masked_video = masked_first_frame(jnp.full((2, 8, 8, 3), 0.5), 3)
    out = generator(["a", "b"], embeddings=text, masked_video=masked_video)
    assert out.videos.shape == (2, 3, 8, 8, 3)
    other = generator(["a", "b"], embeddings=text, masked_video=masked_first_frame(jnp.full((2, 8, 8, 3), -0.5), 3))
    faster = generator(["a", "b"], embeddings=text, masked_video=masked_video, motion=20.0)
    assert (other.videos != out.videos).any() and (faster.videos != out.videos).any()
    weak = dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, last_frame_guidance=None))
    free = Generator(dataclasses.replace(experiment, stages=(weak,)), generator.params, jax.devices()[:1],
                     generator.autoencoders)
    one, alone = (g(["a", "b"], embeddings=text, masked_video=masked_video, steps=1).videos.astype(int)
                  for g in (generator, free))
    changes = np.abs(one - alone).mean((0, 2, 3, 4))  # by frame: the weight is 0 at the first, 2 at the last
    assert changes[0] < 1 < changes[2]
    for call, message in (
        (lambda: generator(["a", "b"], embeddings=text), ("generator.Generator.__call__", "1")),
        (lambda: generator(["a", "b"], embeddings=text,
                           masked_video=masked_video._replace(mask=jnp.ones((2, 3, 1, 1, 1)))),
         ("first_frame.FirstFrame.given",)),
        (lambda: generator.extend(["a"], frames=6, embeddings=text[:1]), ("stage", "'animate'", "a picture")),
        (lambda: Generator(experiment, generator.params), ("generator.Generator.__init__",)),
    ):
        with refused(*message):
            call()


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("change", "message"), [
    ({"heads": (4,)}, ("LatentUNet.heads", "=(2,)", "(4,)")),
    ({"widths": (16,)}, ("latent_inflation.plan_latent_inflation",
                         "/out/kernel [1, 3, 3, 8, 4] from [1, 3, 3, 16, 4]")),
    ({"classes": 3}, ("LatentUNet.classes", "=0", "3")),
])
def test_files_that_a_network_cannot_begin_as(change, message, tmp_path):
    write_model(tmp_path / "unet.safetensors", dataclasses.replace(IMAGE, **change))
    stage = stage_of(init_from=InitFromFile(path=str(tmp_path / "unet.safetensors")))
    with refused(*message):
        starting_weights(stage, tmp_path)


def test_a_file_of_something_else(tmp_path):
    write_model(tmp_path / "vae.safetensors", AUTOENCODER)
    with refused("Stage.training.init_from.path", "Autoencoder", "LatentUNet"):
        starting_weights(stage_of(init_from=InitFromFile(path=str(tmp_path / "vae.safetensors"))), tmp_path)


def test_pieces_give_the_whole(weights):
    """An autoencoder that works frame by frame may see them one by one; tiles are close to the whole."""
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16, 3)), jnp.float32)
    latents = encode(LATENT, weights, video)
    pieces = dataclasses.replace(LATENT, encode_frames=2, decode_frames=1)
    np.testing.assert_allclose(encode(pieces, weights, video), latents, atol=1e-5)
    out = decode(LATENT, weights, latents)
    np.testing.assert_allclose(decode(pieces, weights, latents), out, atol=1e-5)
    assert out.shape == video.shape and np.abs(out).max() <= 1
    # One with temporal layers gives the whole where pieces see as many frames as it does.
    temporal = Latent(autoencoder=dataclasses.replace(AUTOENCODER, widths=(8,), decoder="temporal"), decode_frames=1)
    params, latents_of_frames = random_params(temporal.autoencoder), latents[:, :, :4, :4]
    whole, apart, seen = (jax.jit(lambda z, c=change: decode(dataclasses.replace(temporal, **c), params, z))(
        latents_of_frames) for change in ({"decode_frames": None}, {}, {"overlap_frames": 2}))
    np.testing.assert_allclose(seen, whole, atol=1e-5)
    assert np.abs(apart - whole).max() > 1e-2
    tiles = dataclasses.replace(LATENT, tile=(8, 12), overlap=4)
    assert encode(tiles, weights, video).shape == latents.shape == (2, 3, 8, 8, 4)
    assert decode(tiles, weights, latents).shape == video.shape


def test_programs_in_latents_can_be_planned():
    """Shapes alone: the weights are one more argument of both programs, and their work is counted."""
    stage, mesh = pictured(), make_mesh(MeshSpec(data=2), jax.devices()[:2])
    data = CaptionedDigits(size=16, frames=3)
    batch, _ = training_batch(stage, data, BATCH, 1, mesh)
    state, weights = abstract_state(stage, mesh), abstract_weights(stage.latent, mesh)
    after, metrics = jax.eval_shape(jit_train_step(stage, mesh), state, batch, *weights)
    assert metrics["loss"].shape == () and jax.tree.structure(after) == jax.tree.structure(state)
    plain, _ = training_batch(stage, data, BATCH, 1)
    work = training_work(stage, plain, state.params, mesh)
    assert work.model == 3 * work.forward.model + work.autoencoder and work.autoencoder > 0
    shardings = jax.tree.map(lambda a: a.sharding, state.params)
    videos = jax.eval_shape(jit_sampling(stage, stage.sampling, mesh, shardings), state.params,
                            *sampling_inputs(stage, BATCH, 1, mesh), *weights)
    assert videos.shape == (BATCH, 3, 8, 8, 3)
    sampling = sampling_work(stage, stage.sampling, plain, state.params, mesh)
    assert sampling.evaluations == 2 and sampling.model == 2 * sampling.forward.model + sampling.autoencoder
