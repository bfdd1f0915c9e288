"""Released folders through the generator of runs: the videos of their callables, windows, conditioning frames,
cascades."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vdm_jax
from tests.pipelines.folders import write_motion, write_pictures, write_videos
from tests.refusals import refused
from vdm_jax.conditions.frame_masks import MaskedVideo, masked_first_frame
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.process import Process
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.released.models import load_released, read_released, with_size
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.options import Sampling, Windows
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

PROMPTS = ["a red three", "three moving"]
ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    return write_motion(tmp_path_factory.mktemp("released") / "motion")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    return write_pictures(tmp_path_factory.mktemp("released") / "pictures")


@pytest.fixture(scope="module")
def generator(motion):
    return load_released(motion, ONE)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("released") / "videos")


def close(found, wanted, most=1):
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).max() <= most


def resampled(generator, **changes):
    """The generator with another sampling."""
    stage = generator.experiment.stages[0]
    stage = dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, **changes))
    return generator.of(dataclasses.replace(generator.experiment, stages=(stage,)))


@pytest.mark.parametrize("scheduler", ["ddim", pytest.param("dpm++", marks=pytest.mark.full),
                                       pytest.param("lcm", marks=pytest.mark.full)])
def test_a_folder_of_texts_samples_as_its_callable(pictures, scheduler):
    found = load_released(pictures, ONE, scheduler=scheduler)
    pipeline = vdm_jax.from_pretrained(pictures, scheduler=scheduler)
    common, away = {"seed": 2, "guidance_scale": 9.0}, "moving moving"
    wanted = pipeline(PROMPTS, num_inference_steps=2, negative_prompt=away, **common)
    close(found(PROMPTS, steps=2, negative=away, **common).videos, wanted.videos)
    close(found(PROMPTS, steps=2, **common).videos, pipeline(PROMPTS, num_inference_steps=2, **common).videos)


def test_a_folder_of_pictures_samples_as_its_callable(videos):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    pipeline = vdm_jax.from_pretrained(videos)
    wanted = pipeline(Image.fromarray(pixels), height=8, width=12, num_inference_steps=2, fps=5, noise_aug_strength=0.0,
                      motion_bucket_id=90, max_guidance_scale=2.0)
    generator = with_size(vdm_jax.load(videos, ONE), height=8, width=12)
    masked_video = masked_first_frame(jnp.asarray(pixels[None] / 127.5 - 1, jnp.float32), 3)
    found = resampled(generator, last_frame_guidance=1.0)("", masked_video=masked_video, steps=2, fps=5, motion=90,
                                                          picture_noise=0.0)
    close(found.videos, wanted.videos)
    with refused("generator.Generator.__call__", "1 frames"):
        generator("", steps=2)


def test_all_devices_share_the_videos(motion, generator):
    wanted = generator(PROMPTS, steps=2, seed=1).videos
    close(load_released(motion)(PROMPTS, steps=2, seed=1).videos, wanted)


def test_the_experiment_is_data_and_needs_no_weights(motion, generator):
    found = read_released(motion)
    assert found == generator.experiment and from_json(Experiment, to_json(found)) == found
    params = jax.eval_shape(lambda: initial_params(found.stages[0], jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, generator.params["video"])


def test_known_frames_longer_videos_and_windows(generator):
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (1, 4, 16, 16, 3)).astype(np.float32)
    mask = (np.arange(4) < 2).astype(np.float32)[None, :, None, None, None]
    found = generator("red", steps=2, masked_video=MaskedVideo(video, mask)).videos
    close(found[:, :2], np.round(127.5 * (video[:, :2] + 1)).astype(np.uint8))
    longer = generator.extend("red", frames=6, overlap=2, steps=2)
    assert longer.videos.shape == (1, 6, 16, 16, 3)
    close(longer.videos[:, :4], generator("red", steps=2).videos)
    long = resampled(with_size(generator, frames=8), windows=Windows(frames=4, overlap=2))
    assert long("red", steps=2).videos.shape == (1, 8, 16, 16, 3)  # beyond the four frames of its motion modules


def test_a_cascade_begins_with_a_folder(generator):
    base = generator.experiment.stages[0]
    large = Stage(
        name="large", video=VideoSpec(frames=4, height=32, width=32, fps=8), source=LowResolution(
            frames=4, height=16, width=16), process=Process(), sampling=Sampling(steps=2),
        network=UNet(levels=(Level(channels=8, blocks=1),), patch=4, low_resolution=True, groups=2))
    cascade = Generator(
        Experiment(name="cascade", stages=(base, large)),
        {"video": generator.params["video"], "large": initial_params(large, jax.random.key(0))}, ONE,
        generator.autoencoders, generator.encoder)
    found = cascade("red", steps=2)
    close(found.stages["video"], generator("red", steps=2).videos)
    assert found.videos.shape == (1, 4, 32, 32, 3)


def test_refusals(generator, pictures):
    with refused("latent_unet.check", "permitted"):
        with_size(generator, frames=5)("red", steps=2)
    with refused("prompts.encoded", "3 captions", "2"):
        generator(PROMPTS, negative=["a"] * 3, steps=2)
    with refused("generator.Generator.request"):
        generator("red", negative="blue", embeddings=np.zeros((1, 6, 6)), steps=2)
    with refused("num_inference_steps", "permitted"):
        load_released(pictures, ONE, scheduler="dpm++")("red", steps=1000)
