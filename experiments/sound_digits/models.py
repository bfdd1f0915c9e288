"""The model of the experiment: a base that reads captions, which also hears and makes twice as many frames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vdm_jax.conditions.inputs import Input
from vdm_jax.data.digit_beats import DigitBeats
from vdm_jax.stages.options import Dropout, InitFrom
from vdm_jax.stages.stage import Experiment

LEFT_OUT = 0.1  # share of training clips without their sound, for guidance by it


def data_of(base: Experiment) -> DigitBeats:
    """The clips with a beat, whose digits are as large as those of the base."""
    return DigitBeats(size=base.data.size, digit_side=base.data.digit_side)


def hearing(base: Experiment, base_run: Path, steps: int, batch: int, seed: int) -> Experiment:
    """The base with sound as tokens of each frame, trained from where the base of a run ended: all of it, since frames
    are half as long, and digits stand still and jump."""
    stage, data = base.stages[0], data_of(base)
    network = dataclasses.replace(stage.network, conditions=(Input(name="sound", width=data.sound.width),))
    training = dataclasses.replace(
        stage.training, steps=steps, batch_size=batch, decay=True, checkpoint_every=min(100, steps), keep=2,
        validate_every=0, sample_every=0, dropout=(Dropout(names=("sound",), probability=LEFT_OUT),),
        init_from=InitFrom(stage=stage.name, run=str(base_run)))
    video = dataclasses.replace(stage.video, frames=data.frames, fps=data.fps)
    stage = dataclasses.replace(stage, video=video, network=network, training=training)
    return dataclasses.replace(base, name=f"{base.name}_sound", stages=(stage,), data=data, seed=seed)
