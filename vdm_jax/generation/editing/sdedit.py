"""SDEdit: noise up to some step, then sampling with the new caption (Meng et al. 2021, arXiv 2108.01073)."""

from __future__ import annotations

from typing import ClassVar

from vdm_jax.configuration import Share, config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.inversion import diffused, sampled_from, steps_from
from vdm_jax.generation.editing.parts import EditParts, EditsStage
from vdm_jax.stages.options import Sampling


@config
class SDEdit(EditsStage):
    """The video is diffused to the level at which the last `strength` of the sampler's steps begin, and these are made.
    Any sampler will do. It needs no caption of the given video; what it keeps of it is what the noise leaves."""

    name: ClassVar[str] = "sdedit"
    inverts: ClassVar[bool] = False

    strength: Share = 0.6  # share of the steps that are made; 0: the video stays as it is

    def sampling(self, sampling: Sampling) -> Sampling:
        """How a stage is sampled: as it is."""
        return sampling

    def edit(self, x: Video, parts: EditParts) -> Video:
        """The edited video, or latents."""
        steps = steps_from(parts.steps, self.strength)
        if not len(steps.level):
            return x
        z = diffused(x, parts.keys, steps, parts.process, parts.shared_noise)
        return sampled_from(z, parts.sampler, parts.target, parts.keys, steps, parts.process, parts.shared_noise)
