"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, arXiv 2304.06140)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vdm_jax.configuration import Share, config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.inversion import ddpm_inverted, replayed, steps_from
from vdm_jax.diffusion.samplers import DDIM, DDPM
from vdm_jax.generation.editing.ddim_inversion import one_step_scheduler
from vdm_jax.generation.editing.parts import EditParts, EditsStage
from vdm_jax.stages.options import Sampling


@config
class DDPMInversion(EditsStage):
    """The noises of the last `strength` of the steps that lead to the given video with its own caption, then these
    steps with the new caption and the same noises. With the same caption and guidance the video comes back exactly."""

    name: ClassVar[str] = "ddpm"

    strength: Share = 0.64  # share of the steps that are inverted and made again; published: all but 36 of 100

    def sampling(self, sampling: Sampling) -> Sampling:
        """How a stage is sampled: by a sampler that draws noise, its own where it does."""
        sampler = sampling.sampler
        draws = type(sampler) is DDPM or (isinstance(sampler, DDIM) and sampler.eta > 0 and sampler.threshold is None)
        return dataclasses.replace(sampling, sampler=sampler if draws else DDPM(grid=sampler.grid),
                                   scheduler=one_step_scheduler(sampling.scheduler))

    def edit(self, x: Video, parts: EditParts) -> Video:
        """The edited video, or latents."""
        steps, process = steps_from(parts.steps, self.strength), parts.process
        if not len(steps.level):
            return x
        z, noises = ddpm_inverted(parts.source, x, parts.keys, steps, process, sampler=parts.sampler,
                                  shared_noise=parts.shared_noise)
        return replayed(parts.target, z, noises, steps, process.schedule.family, sampler=parts.sampler)
