"""FateZero: attention of the inversion in the place of the edit's, and self-attention blended by where the edited words
are (Qi et al. 2023, arXiv 2303.09535).

Prompt-to-Prompt takes the attention of the given video from its reconstruction, which is sampled next to the edit;
FateZero takes that of the inversion, step for step. The authors store the maps of all steps. Here the latents of the
inversion are kept, and at every step of the edit one more estimate of them makes the same attention again
(`attention_maps.py`): memory holds that of one step, whatever their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from vdm_jax.configuration import Share, Size, config
from vdm_jax.diffusion.arrays import Denoiser, Level, Video
from vdm_jax.diffusion.inversion import ddim_inverted, steps_from
from vdm_jax.diffusion.sampling import Walk
from vdm_jax.diffusion.steps import Step
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.attention_maps import (
    Blend,
    Kept,
    edited_positions,
    kept_attention,
    with_kept,
    word_map,
)
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion, Refinements, held_of
from vdm_jax.generation.editing.parts import EditParts
from vdm_jax.generation.editing.prompt_to_prompt import PromptToPrompt, steps_replaced
from vdm_jax.generation.editing.words import WordEdits, words_of
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import UNet
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.stages.stage import Stage


@config
class FateZero(PromptToPrompt):
    """DDIM inversion with the given video's caption and without guidance, then sampling of the new one, whose
    cross-attention is the inversion's in the first steps, and whose self-attention is so too, but for queries where the
    inversion attends to the words that change. Stages that read no captions are edited by DDIM inversion.

    The authors choose the shares for each video: `cross_replace` 0.5 and 0.8, `self_replace` 0.5 to 0.9 for other
    shapes; the defaults are ours. `threshold` and `most_tokens` are theirs.
    """

    name: ClassVar[str] = "fatezero"
    samples_pairs: ClassVar[bool] = False

    refinements: Refinements = 0  # published; with more the attention is that at the latents they end at
    self_replace: Share = 0.8  # of the steps that are made, the first ones, whose self-attention is replaced
    # Share of the largest attention to the words that change from which queries keep their own self-attention; 0: all
    # do, 1: none does
    threshold: Share = 0.3
    blend: tuple[str, ...] = ()  # words of the given video's caption that change; (): those that the captions differ in
    most_tokens: Size = 1024  # of a frame: layers with more keep their own attention

    def stage(self, stage: Stage) -> Stage:
        """The stage, of which nothing is recomputed: attention is taken out of the network. Raises `UserError` for a
        network that reads captions and is no U-Net."""
        if stage.network.text is None:
            return stage
        if not isinstance(stage.network, UNet | LatentNetwork):
            raise UserError(f"Stage {stage.name!r}: {type(stage.network).__name__} with method={self.name!r}, which "
                            "takes attention out of a network layer by layer; permitted: a UNet or a LatentNetwork, or "
                            "method='prompt_to_prompt'", "FateZero.stage")
        return dataclasses.replace(stage, network=stage.network.rematerialised("none"))

    def by_words(
        self, stage: Stage, generator: Generator, captions: Sequence[str], sources: Sequence[str] | None
    ) -> WordEdits | None:
        """Weights of the first tokens of the new captions, and places of the words that change among those of the given
        videos' captions: none, and all self-attention is the inversion's, where captions are equal and `blend` names
        no word. Raises `UserError` as `PromptToPrompt.by_words`, for a word that is not there or cut off, captions of
        which nobody can say which words change, and several captions with them at different places."""
        found = super().by_words(stage, generator, captions, sources)
        if found is None:
            return None
        places = {self._places(stage, generator, *pair) for pair in zip(captions, sources, strict=True)}
        if len(places) > 1:
            raise UserError(f"words that change at different places, {sorted(places)}, of several captions; permitted: "
                            "one caption, or words at the same places", "FateZero.blend")
        return found._replace(edited=places.pop())

    def _places(self, stage: Stage, generator: Generator, caption: str, source: str) -> tuple[int, ...]:
        """Those of one caption."""
        new, own = (words_of(generator, stage, text) for text in (caption, source))
        wanted = [word.lower() for word in self.blend]
        if missing := [word for word in wanted if word not in own.words]:
            raise UserError(f"blend={missing[0]!r}, which is no word of {source!r}; permitted: {', '.join(own.words)}",
                            "FateZero.blend")
        if not wanted and new.counts != own.counts:
            raise UserError(f"blend=() with {source!r} and {caption!r}, which have other numbers of words; permitted: "
                            f"blend with words of the first, such as {own.words[-1]!r}", "FateZero.blend")
        changes = [word in wanted if wanted else word != other
                   for word, other in zip(own.words, new.words if not wanted else own.words, strict=True)]
        if cut := [word for word, change, some in zip(own.words, changes, own.places, strict=True)
                   if change and not some]:
            raise UserError(f"{cut[0]!r}, a word that changes, is cut off {source!r}, of which the network reads "
                            f"{sum(own.counts)} tokens; permitted: words before that, or a shorter caption",
                            "FateZero.blend")
        return tuple(place for change, some in zip(changes, own.places, strict=True) if change for place in some)

    def edit(self, x: Video, parts: EditParts) -> Video:
        """The edited video, or latents."""
        if parts.words is None:
            return DDIMInversion.edit(self, x, parts)
        steps, process = steps_from(parts.steps, self.strength), parts.process
        count = len(steps.level)
        if not count:
            return x
        trajectory = ddim_inverted(parts.source, x, steps, process.schedule.family, refinements=self.refinements,
                                   held=held_of(process))
        # A plain step back to z evaluates the network at what it begins with
        seen = trajectory if self.refinements else jnp.concatenate([trajectory[1:], x[None].astype(trajectory.dtype)])
        walk = Walk(parts.sampler, process, x.shape, count)

        def advance(carry: tuple, given: tuple[Step, Video]) -> tuple[tuple, None]:
            step, z = given
            return walk.advance(self._changed(parts, z, step, count), parts.keys, carry, step)[0], None

        (made, _), _ = jax.lax.scan(advance, walk.begin(parts.keys, steps.level[0], trajectory[0]), (steps, seen))
        return made

    def _changed(self, parts: EditParts, z: Video, step: Step, count: int) -> Denoiser:
        """The denoiser of the new caption with the attention of the inversion at a step, whose latents are z."""
        def denoise(z_new: Video, logsnr: Level) -> Video:
            kept, (words, estimates) = kept_attention(parts.source, z, logsnr, self.most_tokens), parts.words
            self._check(kept, len(z))
            size = z.shape[1:4]
            found = word_map(kept.cross, words.edited, size) if self._masks(words) else jnp.zeros((len(z), *size))
            blend = Blend(lambda size: edited_positions(found, size, self.threshold),
                          step.index < steps_replaced(count, self.self_replace),
                          step.index < steps_replaced(count, self.cross_replace), words.weights, estimates)
            return with_kept(parts.target, kept, blend)(z_new, logsnr)

        return denoise

    def _masks(self, words: WordEdits) -> bool:
        """Whether some queries may keep their own self-attention."""
        return bool(words.edited) and self.self_replace > 0

    def _check(self, kept: Kept, count: int) -> None:
        """Raise `UserError` where the network has no attention of the kind that is replaced, or the inversion is
        guided."""
        if self.self_replace and not kept.own:
            raise UserError(f"a network without self-attention other than temporal of up to most_tokens="
                            f"{self.most_tokens} tokens with method={self.name!r}; permitted: more most_tokens, or "
                            "self_replace=0",
                            "FateZero.most_tokens")
        if not kept.cross:
            raise UserError(f"a network without cross-attention to the caption of up to most_tokens={self.most_tokens} "
                            f"tokens a frame with method={self.name!r}; permitted: more most_tokens, or "
                            "method='ddim'", "FateZero.most_tokens")
        if len(next(iter(kept.cross.values())).q) != count:
            raise UserError(f"source_guidance above 0 with method={self.name!r}, which inverts without guidance; "
                            "permitted: 0", "FateZero.source_guidance")
