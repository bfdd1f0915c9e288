"""What a method of editing sees of a stage."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from jaxtyping import Array, Key

from vdm_jax.diffusion.arrays import Denoiser
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Sampler
from vdm_jax.diffusion.steps import Step
from vdm_jax.stages.stage import Stage


class EditParts(NamedTuple):
    """A stage as functions: of what the given video shows, and of what it shall show."""

    source: Denoiser  # conditioned on the given video's caption, with the guidance of inversion
    target: Denoiser  # conditioned on the new caption, with the stage's guidance
    keys: Key[Array, " B"]
    steps: Step  # of the sampler, all of them
    process: Process
    sampler: Sampler
    shared_noise: bool = False  # all frames of a video get the same noise


class EditsStage:
    """What methods of editing have unless they say otherwise."""

    name: ClassVar[str]
    inverts: ClassVar[bool] = True  # whether it goes by the caption of the given video
    carries_first: ClassVar[bool] = False  # whether every clip of a long video begins with the video's first frame

    def stage(self, stage: Stage) -> Stage:
        """The stage that edits: as it is."""
        return stage
