"""What a method of editing sees of a stage, and what all methods have."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from jaxtyping import Array, Key

from vdm_jax.diffusion.arrays import Denoiser, Video, noise_from_keys
from vdm_jax.diffusion.inversion import diffused
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Sampler
from vdm_jax.diffusion.steps import Step
from vdm_jax.diffusion.windows import ConditionalDenoiser
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
    whole_video: ClassVar[bool] = False  # whether a clip is the whole video, where the model makes any number of frames

    def stage(self, stage: Stage) -> Stage:
        """The stage that edits: as it is."""
        return stage

    def composed(self, stage: Stage, estimate: Callable[[Stage], ConditionalDenoiser]) -> ConditionalDenoiser:
        """The estimate of the stage that edits, of those of stages with the same parameters: the network's."""
        return estimate(stage)

    def pauses(self, steps: int) -> tuple[int, ...]:
        """Numbers of the steps, of so many, whose estimate the host changes (`at_pause`): none. Methods that have some
        make all steps by deterministic DDIM and have `begin` in place of `edit`."""
        return ()


def from_one_noise(x: Video, parts: EditParts, steps: Step, strength: float) -> Video:
    """z at the first of the steps, all frames with the same noise: x diffused, or at strength 1 noise alone."""
    family = parts.process.schedule.family
    if strength < 1:
        return diffused(x, parts.keys, steps, parts.process, True)
    std = 1.0 if family.name == "vp" else family.alpha_sigma(steps.level[0])[1]
    return std * noise_from_keys(parts.keys, 0, x.shape, True)
