"""Stages and experiments that fit together, and every way in which they may not."""

from __future__ import annotations

import dataclasses

import pytest

from tests.refusals import refused
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.errors import UserError
from vdm_jax.networks.config import Level, UNet, WordEncoder
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

UNET = UNet(levels=(Level(channels=8),))


def make_stage(name="base", size=(4, 16, 16), source=None, network=UNET, **more):
    """A stage that makes videos of `size` from `source`, both (frames, height, width)."""
    frames, height, width = size
    low = None if source is None else LowResolution(frames=source[0], height=source[1], width=source[2])
    network = dataclasses.replace(network, low_resolution=source is not None)
    return Stage(name=name, video=VideoSpec(frames=frames, height=height, width=width), source=low, network=network,
                 process=Process(), **more)


def make_experiment(*stages):
    return Experiment(name="test", stages=stages, data=CaptionedDigits())


BASE = make_stage()
TEMPORAL = make_stage("temporal", (8, 16, 16), (4, 16, 16))
SPATIAL = make_stage("spatial", (8, 32, 64), (8, 16, 16))


def message_of(make) -> str:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_cascade_that_fits():
    experiment = make_experiment(BASE, TEMPORAL, SPATIAL)
    assert experiment.stage("temporal") is TEMPORAL
    assert SPATIAL.video.shape == (8, 32, 64, 3) and str(SPATIAL.video) == "8x32x64"
    assert make_experiment(SPATIAL).stages == (SPATIAL,)  # a super-resolution stage may be trained alone


@pytest.mark.parametrize(("make", "message"), [
    (lambda: VideoSpec(frames=0, height=8, width=8), "VideoSpec.frames=0 is not valid; permitted: >= 1"),
    (lambda: VideoSpec(frames=4, height=8, width=-8), "VideoSpec.width=-8 is not valid; permitted: >= 1"),
    (lambda: VideoSpec(frames=4, height=8, width=8, fps=0.0),
     "VideoSpec.fps=0.0 is not valid; permitted: >= 0.01 and <= 1000"),
    (lambda: VideoSpec(frames=4, height=8, width=8, fps=1001.0),
     "VideoSpec.fps=1001.0 is not valid; permitted: >= 0.01 and <= 1000"),
    (lambda: Training(batch_size=0), "Training.batch_size=0 is not valid; permitted: >= 1"),
    (lambda: Training(steps=0), "Training.steps=0 is not valid; permitted: >= 1"),
    (lambda: Training(keep=0), "Training.keep=0 is not valid; permitted: >= 1"),
    (lambda: Training(batch_size=6, accumulation=4),
     "Training.accumulation=4 does not divide batch_size=6; permitted: divisors of 6"),
    (lambda: Training(ema_decay=1.0), "Training.ema_decay=1.0 is not valid; permitted: >= 0 and < 1"),
    (lambda: Training(text_dropout=-0.1), "Training.text_dropout=-0.1 is not valid; permitted: >= 0 and < 1"),
    (lambda: Training(optimizer="sgd"), "Training.optimizer='sgd' is not valid; permitted: 'adamw', 'adafactor'"),
    (lambda: Training(optimizer="adafactor", weight_decay=0.1),
     "Training.weight_decay=0.1 with optimizer='adafactor'; permitted: 0"),
    (lambda: make_stage(network=dataclasses.replace(UNET, classes=3), training=Training(images_per_clip=2)),
     "Stage 'base': training.images_per_clip=2 with network.classes=3, one class for the clip and all images; "
     "permitted: 0"),
    (lambda: Training(learning_rate=0.0), "Training.learning_rate=0.0 is not valid; permitted: > 0"),
    (lambda: Sampling(steps=0), "Sampling.steps=0 is not valid; permitted: >= 1"),
    (lambda: make_stage(size=(8, 16, 16), source=(3, 16, 16)),
     "Stage 'base': source.frames=3 does not divide video.frames=8; permitted: divisors of 8"),
    (lambda: make_stage(size=(8, 16, 16), source=(8, 16, 32)),
     "Stage 'base': source.width=32 does not divide video.width=16; permitted: divisors of 16"),
    (lambda: make_stage(size=(8, 16, 16), source=(0, 16, 16)),
     "LowResolution.frames=0 is not valid; permitted: >= 1"),
    (lambda: dataclasses.replace(BASE, network=dataclasses.replace(UNET, low_resolution=True)),
     "Stage 'base': network.low_resolution=True but source is None; permitted: low_resolution exactly with a source"),
    (lambda: dataclasses.replace(TEMPORAL, network=UNET),
     "Stage 'temporal': network.low_resolution=False but source is given; permitted: low_resolution exactly with a "
     "source"),
    (lambda: dataclasses.replace(TEMPORAL, network=dataclasses.replace(TEMPORAL.network, residual=True)),
     "Stage 'temporal': process.prediction='v' with network.residual=True, whose output is a video; permitted: "
     "prediction='x'"),
    (lambda: make_stage(size=(4, 16, 20), network=dataclasses.replace(UNET, patch=8)),
     "Stage 'base': video.width=20 is not a multiple of the network's reduction 8; permitted: 8, 16, ..."),
    (lambda: make_stage(source=(4, 16, 16), training=Training(images_per_clip=2)),
     "Stage 'base': training.images_per_clip=2; permitted: 0 for a stage with a source (joint training is for base "
     "stages)"),
    (lambda: make_stage(network=dataclasses.replace(UNET, norm_over="clip"), training=Training(images_per_clip=2)),
     "Stage 'base': training.images_per_clip=2 with network.norm_over='clip', whose statistics mix the images with the "
     "clip; permitted: norm_over='frame'"),
    (lambda: make_stage(sampling=Sampling(guidance=2.0)),
     "Stage 'base': sampling.guidance=2.0 by 'prompt' but network.text=None, network.conditioning_frames=False; "
     "permitted: 0 for a network without text or classes, 'frames' for one with conditioning frames"),
    (lambda: make_experiment(), "Experiment.stages=[] is not valid; permitted: at least one, with different names"),
    (lambda: make_experiment(BASE, dataclasses.replace(TEMPORAL, name="base")),
     "Experiment.stages=['base', 'base'] is not valid; permitted: at least one, with different names"),
    (lambda: make_experiment(BASE, SPATIAL),
     "Stage 'spatial' starts from 8x16x16, but stage 'base' before it makes 4x16x16; permitted: a source of 4x16x16"),
    (lambda: make_experiment(BASE, make_stage("other")),
     "Stage 'other' starts from nothing, but stage 'base' before it makes 4x16x16; permitted: a source of 4x16x16"),
    (lambda: make_experiment(TEMPORAL, SPATIAL),
     "Stage 'temporal' has a source but nothing before it; permitted: source=None"),
    (lambda: make_experiment(BASE, TEMPORAL).stage("spatial"), "stage 'spatial' is unknown; permitted: base, temporal"),
])
def test_what_does_not_fit_is_named(make, message):
    assert message_of(make) == message


def test_guidance_is_for_networks_with_text():
    network = dataclasses.replace(UNET, text=WordEncoder(words=("red",)))
    assert make_stage(network=network, sampling=Sampling(guidance=2.0)).sampling.guidance == 2.0


@pytest.mark.parametrize(("training", "sampling", "message"), [
    ({"masking": (FrameMask(first=1),)}, {"guided_by": "frames"},
     ("Stage.sampling.guidance", "=2.0", "'frames'", "training.masking", "NoMask")),
    ({"masking": (FrameMask(first=1),), "text_dropout": 0.0}, {},
     ("Stage.sampling.guidance", "=2.0", "'prompt'", "training.text_dropout=0")),
])
def test_guidance_away_from_what_training_never_leaves_out(training, sampling, message):
    network = UNet(levels=(Level(channels=8),), groups=4, embedding_channels=8, conditioning_frames=True,
                   text=WordEncoder(words=("a",), length=2, width=8, layers=1, head_dim=8))
    with refused(*message):
        make_stage(network=network, training=Training(**training), sampling=Sampling(guidance=2.0, **sampling))
    make_stage(network=network, training=Training(**training), sampling=Sampling(**sampling))
    both = Training(masking=(FrameMask(first=1), NoMask()))
    make_stage(network=network, training=both, sampling=Sampling(guidance=2.0, **sampling))
