"""DDIM inversion: the noise of which DDIM makes the given video, then DDIM with the new caption."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

from vdm_jax.configuration import Range, Share, config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.inversion import Held, ddim_inverted, sampled_from, steps_from
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.scheduler_steps import SchedulerSteps
from vdm_jax.generation.editing.parts import EditParts, EditsStage
from vdm_jax.stages.options import Sampling

Refinements = Annotated[int, Range(least=0, most=100)]


@config
class DDIMInversion(EditsStage):
    """The video is inverted along the last `strength` of the steps and sampled again from there, without noise: with
    the caption of the given video and no guidance that leads back to it, with another it changes what the captions
    differ in. Sampling is DDIM, whatever the stage's sampler, on its grid."""

    name: ClassVar[str] = "ddim"

    strength: Share = 1.0  # share of the steps that are inverted and made again
    refinements: Refinements = 3  # further evaluations of each step of the inversion

    def sampling(self, sampling: Sampling) -> Sampling:
        """How a stage is sampled: by deterministic DDIM."""
        return deterministic(sampling)

    def edit(self, x: Video, parts: EditParts) -> Video:
        """The edited video, or latents."""
        steps, process = steps_from(parts.steps, self.strength), parts.process
        if not len(steps.level):
            return x
        z = ddim_inverted(parts.source, x, steps, process.schedule.family, refinements=self.refinements,
                          held=held_of(process))[0]
        return sampled_from(z, parts.sampler, parts.target, parts.keys, steps, process)


def held_of(process: Process) -> Held:
    """What DDIM inversion takes to be the same at both ends of a step: what the network predicts, or else the noise."""
    return process.prediction if process.prediction in ("v", "flow") else "eps"


def deterministic(sampling: Sampling) -> Sampling:
    """Sampling by DDIM without noise on the sampler's grid, or on the steps of `one_step_scheduler`."""
    sampler = sampling.sampler
    plain = dataclasses.replace(sampler, eta=0.0) if isinstance(sampler, DDIM) else DDIM(grid=sampler.grid)
    return dataclasses.replace(sampling, sampler=plain, scheduler=one_step_scheduler(sampling.scheduler))


def one_step_scheduler(scheduler: SchedulerSteps | None) -> SchedulerSteps | None:
    """A released scheduler's noise levels for samplers of one evaluation a step: the timesteps of diffusers' DDIM, of
    flow matching the sigmas of its FlowMatchEuler. Spaced sigmas of a network that embeds them stay as they are."""
    if scheduler is None or scheduler.log_sigma_embedding:
        return scheduler
    name = "DDIMScheduler" if scheduler.flow is None else "FlowMatchEulerDiscreteScheduler"
    return dataclasses.replace(scheduler, scheduler=name, sigmas=None)
