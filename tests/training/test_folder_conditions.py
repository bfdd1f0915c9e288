"""From a folder of videos of different lengths, with a reference picture for each, to a trained and sampled stage."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import random_params
from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, Temporal, WithExtraKeys
from vdm_jax.commands.sample_command import Sample, referenced
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.diffusion.process import Process
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import Level, Reference, SelfAttention, UNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.inputs import sampling_inputs, training_batch
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import example_conditioning
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training.loop import device_batch
from vdm_jax.training.state import create_state
from vdm_jax.training.step import compile_train_step, stage_loss
from vdm_jax.video.writing import write_png, write_video

NETWORK = UNet(levels=(Level(channels=8, blocks=1, mixers=(
    SelfAttention(pattern=WithExtraKeys(inner=Spatial()), head_dim=8, extra_tokens="picture"),
    SelfAttention(pattern=Temporal(), head_dim=8))),), patch=4, embedding_channels=16, groups=4,
    references=(Reference(name="picture", width=48, patch=4),))
STAGE = Stage(name="folder", video=VideoSpec(frames=4, height=8, width=8), network=NETWORK,
              process=Process(prediction="x"), training=Training(batch_size=4, learning_rate=1e-2, warmup_steps=1),
              sampling=Sampling(steps=2, threshold=None, batch_size=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for number, frames in enumerate((8, 4, 2, 3)):
        write_video(root / "videos" / f"{number}.mp4", rng.integers(0, 256, (frames, 16, 16, 3)).astype(np.uint8), 8,
                    lossless=True)
        (root / "pictures").mkdir(exist_ok=True)
        write_png(root / "pictures" / f"{number}.png", rng.integers(0, 256, (16, 16, 3)).astype(np.uint8))
    return VideoFolder(path=str(root / "videos"), frames=4, height=8, width=8, fractions=(1.0, 0.0, 0.0), short="pad",
                       references=str(root / "pictures"), cache=str(root / "cache"))


@pytest.fixture(scope="module")
def batch(data):
    return Pipeline(open_source(data, "train"), batch_size=4, seed=0).batch(0)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSpec(data=1), jax.devices()[:1])


def test_the_shapes_are_the_planned_ones(data, batch, mesh):
    planned, notes = training_batch(STAGE, data, 4, 7)
    given = device_batch(batch, mesh)
    assert {name: (x.shape, x.dtype) for name, x in given.items()} == {
        name: (x.shape, x.dtype) for name, x in planned.items() if name != "reference_picture"} | {
        "reference_picture": ((4, 1, 8, 8, 3), np.dtype("uint8"))}
    assert planned["reference_picture"].shape == (4, 1, 8, 8, 3) and not notes
    conditioning = training_inputs(STAGE, given, jax.random.key(0))[1]
    assert example_conditioning(STAGE).references["picture"].shape == (1, 1, 4, 48)
    assert conditioning.references["picture"].shape == (4, 1, 4, 48)
    assert sampling_inputs(STAGE, 1, 7, mesh)[1].references["picture"].shape == (1, 1, 4, 48)


def test_patches_are_those_of_the_picture():
    picture = np.random.default_rng(1).uniform(-1, 1, (1, 1, 8, 8, 3)).astype(np.float32)
    tokens = NETWORK.references[0].features(jnp.asarray(picture), STAGE)
    np.testing.assert_allclose(tokens[0, 0, 1], picture[0, 0, :4, 4:].reshape(-1), atol=1e-6)


def test_training_and_sampling_with_both(batch, mesh):
    state, step = create_state(STAGE, 0, mesh), compile_train_step(STAGE, mesh)
    given = device_batch(batch, mesh)
    assert not batch["frame_valid"].all()
    for _ in range(6):
        state, metrics = step(state, given)
    assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
    learned = state.params["down_0_0"]["mixers"]["spatial_attention_0"]["external"]["kernel"]
    assert np.abs(learned - create_state(STAGE, 0, mesh).params["down_0_0"]["mixers"]["spatial_attention_0"][
        "external"]["kernel"]).max() > 1e-3
    params = random_params(STAGE, 0)
    loss = jax.jit(lambda b: stage_loss(STAGE, params, b, jax.random.key(0), train=False)[0])
    valid = batch["frame_valid"][..., None, None, None]
    np.testing.assert_array_equal(loss(given), loss({**given, "video": jnp.where(valid, given["video"], 255)}))
    other = {**given, "reference_picture": 255 - given["reference_picture"]}
    assert abs(float(loss(given) - loss(other))) > 1e-6
    generator = Generator(Experiment(name="x", stages=(STAGE,), data=VideoFolder(path="x")),
                          {"folder": params}, jax.devices()[:1])
    pictures = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)  # layer norm hides flat ones
    videos, swapped = (generator(["", ""], references={"picture": p}).videos for p in (pictures, pictures[::-1]))
    assert np.abs(videos.astype(int) - swapped).max() > 1
    with refused("reference.References.of_request", "references['picture']", "[]", "'folder'",
                 "permitted: ", "[1, height, width, 3]"):
        generator([""])


def test_reference_pictures_of_the_sample_command(tmp_path):
    write_png(tmp_path / "a.png", np.full((20, 30, 3), 90, np.uint8))
    options = Sample(run="x", captions=("", ""), count=2, reference=(tmp_path / "a.png",))
    experiment = Experiment(name="x", stages=(STAGE,), data=VideoFolder(path="x"))
    found = referenced(options, experiment)
    assert found["picture"].shape == (4, 8, 8, 3) and (found["picture"] == 90).all()
    assert referenced(Sample(run="x"), experiment) is None
