"""Null-text inversion: DDIM inversion for sampling with guidance (Mokady et al. 2022, arXiv 2211.09794)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vdm_jax.configuration import Count, Positive, config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.inversion import ddim_inverted, steps_from
from vdm_jax.diffusion.null_text import null_text_optimised, sampled_with_nulls
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion, Refinements, held_of
from vdm_jax.generation.editing.parts import EditParts
from vdm_jax.generation.one_stage import is_guided
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage


@config
class NullText(DDIMInversion):
    """The video is inverted with its own caption and without guidance; then the embeddings of the null caption are
    optimised at every step, so that sampling with guidance leads back to the video; with these the new caption is
    sampled. For stages that read embeddings of captions and are guided by them. It differentiates the network
    `iterations` times a step, which keeps the inputs of its blocks in memory and computes the rest of them again."""

    name: ClassVar[str] = "null_text"
    needs_source: ClassVar[bool] = True
    optimises_null: ClassVar[bool] = True

    refinements: Refinements = 0
    iterations: Count = 10  # of Adam, at each step of the sampler
    learning_rate: Positive = 0.01  # of Adam

    def stage(self, stage: Stage) -> Stage:
        """The stage with a network that its gradient computes again, unless it says itself what it keeps."""
        if stage.network.remat != "none":
            return stage
        return dataclasses.replace(stage, network=stage.network.rematerialised("full"))

    def check(self, stage: Stage, sampling: Sampling) -> None:
        """Raise `UserError` for a stage without embeddings of a null caption, and for sampling without guidance by
        it."""
        text = stage.network.text
        if text is None or not text.embedded:
            found = "no captions" if text is None else type(text).__name__
            raise UserError(f"Stage {stage.name!r}: network that reads {found} with method={self.name!r}, which "
                            "optimises embeddings of the null caption; permitted: a network whose captions are "
                            "embedded beforehand, such as a released model", "NullText.check")
        guided = is_guided(stage, sampling) and not sampling.terms and sampling.guided_by == "prompt"
        if not guided or stage.takes_weight:
            raise UserError(f"Stage {stage.name!r}: sampling.guidance={sampling.guidance} with method={self.name!r}, "
                            "which is for guidance by the caption; permitted: a weight above 0, or method='ddim' "
                            "without guidance", "NullText.check")

    def edit(self, x: Video, parts: EditParts) -> Video:
        """The edited video, or latents."""
        steps, process, nulls = steps_from(parts.steps, self.strength), parts.process, parts.nulls
        if not len(steps.level):
            return x
        if nulls is None:
            raise UserError(f"embeddings of captions without those of the null caption with method={self.name!r}; "
                            "permitted: null_embeddings, or a latent network, whose null caption is zeros",
                            "NullText.edit")
        family = process.schedule.family
        trajectory = ddim_inverted(parts.source, x, steps, family, refinements=self.refinements, held=held_of(process))
        found = null_text_optimised(nulls.source, nulls.null, trajectory, x, steps, family, iterations=self.iterations,
                                    learning_rate=self.learning_rate, sampler=parts.sampler)
        return sampled_with_nulls(nulls.target, trajectory[0], found, steps, family, sampler=parts.sampler)
