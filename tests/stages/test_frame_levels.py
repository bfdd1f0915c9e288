"""A stage whose frames have noise levels of their own, from the draw of a step to videos whose frames follow each
other."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import random_params
from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.frame_schedules import FrameSchedule
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Heun
from vdm_jax.diffusion.sampling import check_steps
from vdm_jax.diffusion.scheduler_steps import SchedulerSteps
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.long_video.plan import Autoregressive, Rolling
from vdm_jax.generation.one_stage import inpainting_method
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.options import Inpainting, Sampling
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training.step import draw, stage_loss
from vdm_jax.video.arrays import to_float

BATCH = 3  # as many clips as frames


TEMPORAL = Temporal()


def make(pattern=TEMPORAL, **changes):
    mixer = SelfAttention(pattern=pattern, head_dim=8)
    values = {"name": "forcing", "video": VideoSpec(frames=3, height=4, width=4),
              "network": UNet(levels=(Level(channels=8, blocks=1, mixers=(mixer,)),), patch=2, embedding_channels=16,
                              groups=4),
              "process": Process(prediction="x", frame_levels=True),
              "sampling": Sampling(steps=3, threshold=None, frame_lag=2, batch_size=2)}
    return Stage(**values | changes)


@pytest.fixture(scope="module")
def batch():
    video = np.random.default_rng(0).integers(0, 256, (BATCH, 3, 4, 4, 3))
    return {"video": jnp.asarray(video, jnp.uint8)}


def test_a_step_draws_and_counts_levels_of_frames_without_mixing_clips(batch):
    stage = make()
    params = random_params(stage, 0)
    levels = draw(stage, batch, jax.random.key(3)).logsnr
    assert levels.shape == (BATCH, 3) and len(set(np.asarray(levels).ravel().tolist())) == 9

    @jax.jit
    def losses(video):
        drawn = draw(stage, {"video": video}, jax.random.key(3))
        network = network_module(stage.network)
        return stage.process.loss(lambda z, level: network.apply({"params": params}, z, level, drawn.conditioning),
                                  drawn.x, None, logsnr=drawn.logsnr, noise=drawn.noise)[0]

    before, after = losses(batch["video"]), losses(batch["video"].at[2].set(0))
    np.testing.assert_array_equal(before[:2], after[:2])
    assert abs(float(before[2] - after[2])) > 1e-4
    mean = jax.jit(lambda b: stage_loss(stage, params, b, jax.random.key(3))[0])(batch)
    np.testing.assert_allclose(mean, before.mean(), rtol=1e-5)


@pytest.mark.parametrize(("pattern", "alike"), [(Spatial(), True), (Temporal(), False)], ids=["spatial", "temporal"])
def test_frames_lag_in_the_generator(pattern, alike):
    """Where frames do not see each other, a lag changes nothing; where they do, later ones see finished ones."""
    stage = make(pattern)
    params = {"forcing": random_params(stage, 1)}
    videos = []
    for lag in (2, 0):
        of_lag = dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, frame_lag=lag))
        experiment = Experiment(name="x", stages=(of_lag,), data=CaptionedDigits(size=16, frames=4))
        videos.append(Generator(experiment, params, jax.devices()[:1])(["", ""], seed=1).videos.astype(int))
    difference = np.abs(videos[0] - videos[1]).max()
    assert difference <= 1 if alike else difference > 2


def test_what_cannot_be_is_refused():
    stage = make()
    assert from_json(Stage, to_json(stage)) == stage and stage.sampling.evaluations(3) == 3 + 2 * 2
    with refused("Stage.sampling.frame_lag", "=2", "process.frame_levels=False"):
        make(process=Process(prediction="x"))
    with refused("frame_lag", "=1"):
        Sampling(sampler=Heun(), frame_lag=1)
    with refused("frame_lag", "=1", "released scheduler"):
        Sampling(frame_lag=1, scheduler=SchedulerSteps(scheduler="DDIMScheduler"))
    with refused("frame_lag", "stop=1.0", "released scheduler"):
        check_steps(DDIM(), 0, stop=1.0, scheduled=True)


def test_a_released_network_learns_from_levels_per_frame():
    unet = LatentUNet(widths=(8,), blocks=1, attention=(False,), heads=(2,), only_cross_attention=(False,), groups=4,
                      in_channels=3, out_channels=3, token_channels=6)
    stage = make(network=LatentNetwork(unet=unet), process=Process(frame_levels=True), sampling=Sampling())
    batch = {"video": jnp.zeros((2, *stage.video.shape), jnp.uint8)}
    drawn = draw(stage, batch, jax.random.key(0))
    assert drawn.logsnr.shape == (2, stage.video.frames)
    params = jax.eval_shape(lambda: initial_params(stage, jax.random.key(0)))
    loss, _ = jax.eval_shape(lambda params: stage_loss(stage, params, batch, jax.random.key(0)), params)
    assert loss.shape == ()


def test_given_frames_of_longer_videos_are_shown_at_their_own_level():
    """Block by block, in whole and step by step: what is given comes out, and changes the frames after it."""
    sampling = Sampling(steps=3, threshold=None, frame_schedule=FrameSchedule(order="autoregressive"), batch_size=2)
    stage = make(sampling=sampling)
    assert inpainting_method(stage, sampling) == "noise_levels" and sampling.evaluations(3) == 9
    experiment = Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=4))
    generator = Generator(experiment, {"forcing": random_params(stage, 1)}, jax.devices()[:1])
    long = generator.long(["", ""], frames=5, method=Autoregressive(overlap=1), seed=1).videos
    np.testing.assert_array_equal(long[:, :3], generator(["", ""], seed=1).videos)
    given = MaskedVideo(np.asarray(to_float(long[:, :3])), (np.arange(3) < 1)[None, :, None, None, None])
    one, other = (generator(["", ""], seed=1, masked_video=given._replace(video=factor * given.video)).videos
                  for factor in (1, -1))
    np.testing.assert_array_equal(one[:, 0], long[:, 0])
    assert np.abs(one[:, 1:].astype(int) - other[:, 1:]).max() > 2
    by_steps = generator(["", ""], seed=1, masked_video=given, watch=lambda step, z: None).videos
    assert np.abs(by_steps.astype(int) - one).max() <= 1
    for changes in ({"frame_schedule": FrameSchedule()}, {"inpainting": Inpainting(method="noise_levels")}):
        with refused(f"Stage.sampling.{'inpainting.method' if 'inpainting' in changes else 'frame_schedule'}",
                     "process.frame_levels=False"):
            make(process=Process(prediction="x"), sampling=Sampling(steps=3, **changes))


@pytest.mark.parametrize(("pattern", "frames"), [(Spatial(), 7), (Temporal(), 3)], ids=["spatial", "whole"])
def test_a_queue_of_frames(pattern, frames):
    """Frames that do not see each other come out as all at once; with a clip as long as the video, by its schedule."""
    stage = make(pattern, sampling=Sampling(steps=4, threshold=None, batch_size=2))
    experiment = Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=4))
    generator = Generator(experiment, {"forcing": random_params(stage, 1)}, jax.devices()[:1])
    rolled = generator.long(["", ""], frames=frames, method=Rolling(overlap=1), seed=1).videos.astype(int)
    schedule = FrameSchedule(lag=2) if frames == 3 else None
    whole = dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=frames),
                                sampling=dataclasses.replace(stage.sampling, frame_schedule=schedule))
    plain = generator.of(dataclasses.replace(experiment, stages=(whole,)))(["", ""], seed=1).videos
    assert np.abs(rolled - plain).max() <= 1 and np.abs(np.diff(rolled, axis=1)).max() > 5


def test_what_cannot_roll():
    stage = make()
    assert Rolling().sampled_by(stage, 9).sampling.frame_schedule == FrameSchedule(lag=2.0)  # 3 steps, 2 frames at once
    with refused("overlap", "=3", "1 to 2"):
        Rolling(overlap=3).check(stage, stage.sampling, 9)
    with refused("frame_schedule", "Heun"):
        Rolling().check(stage, Sampling(sampler=Heun()), 9)
    alike = make(process=Process(prediction="x"), sampling=Sampling())
    with refused("Stage.process.frame_levels", "=False", "rolling"):
        Rolling().check(alike, alike.sampling, 9)
