"""Shipped configs of video cascades in miniature: their own stages, mixers, schedules and samplers with few channels,
few frames and few pixels, on captioned digits."""

from __future__ import annotations

import dataclasses

from vdm_jax.commands.configs import load_config
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
from vdm_jax.networks.config import Mixer, UNet, WordEncoder
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

CHANNELS, HEADS = 8, 8  # of the narrowest level, and per head
TEXT = WordEncoder(words=caption_words(), length=12, width=16, layers=1, head_dim=8)


def miniature(name: str, steps: int = 30) -> Experiment:
    """The experiment of a config whose stages follow each other by `LowResolution`; ratios of sizes are two at most."""
    experiment, stages = load_config(name), []
    for stage in experiment.stages:
        stages.append(small_stage(stage, stages[-1].video if stages else None, steps))
    last = stages[-1].video
    data = CaptionedDigits(size=max(last.height, 16), frames=last.frames, objects=(1, 1), train_clips=64,
                           validation_clips=8, test_clips=8)
    return dataclasses.replace(experiment, stages=tuple(stages), data=data)


def small_stage(stage: Stage, before: VideoSpec | None, steps: int) -> Stage:
    """A stage that starts from the video of a small one before it."""
    network = small_network(stage.network)
    height, width = network.reduction
    if before is None:
        frames, side, source = 4, max(8, height, width), None
    else:
        larger = [min(getattr(stage.video, what) // getattr(stage.source, what), 2) for what in ("frames", "height")]
        frames, side = before.frames * larger[0], before.height * larger[1]
        if stage.source.height * 4 == stage.video.height and side < height:
            side = height  # a factor of four leaves room for a deeper network
        source = LowResolution(frames=before.frames, height=before.height, width=before.width,
                               fill=stage.source.fill, augmentation=stage.source.augmentation)
    crop = stage.training.crop and (side // 2,) * 2
    training = Training(steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=5, ema_decay=0.8, log_every=1,
                        checkpoint_every=steps, sample_every=0, validate_every=0, crop=crop,
                        images_per_clip=min(stage.training.images_per_clip, 2))
    return dataclasses.replace(
        stage, video=VideoSpec(frames=frames, height=side, width=side, fps=stage.video.fps), source=source,
        network=network, training=training, sampling=dataclasses.replace(stage.sampling, steps=3, batch_size=8))


def small_network(network: UNet) -> UNet:
    """The same levels and mixers with one block each and the multipliers of the channels kept."""
    least = min(level.channels for level in network.levels)
    levels = tuple(dataclasses.replace(
        level, channels=CHANNELS * max(1, round(level.channels / least)), blocks=1,
        mixers=tuple(map(small_mixer, level.mixers))) for level in network.levels)
    return dataclasses.replace(
        network, levels=levels, middle=tuple(map(small_mixer, network.middle)), embedding_channels=16, groups=4,
        text=network.text and TEXT, dtype="float32", remat="none")


def small_mixer(mixer: Mixer) -> Mixer:
    """The same mixer with narrow heads, where it has heads, for one device."""
    changes = {name: value for name, value in (("head_dim", HEADS), ("context", "none")) if hasattr(mixer, name)}
    return dataclasses.replace(mixer, **changes)
