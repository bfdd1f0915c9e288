"""Prompt-to-Prompt: editing by cross-attention (Hertz et al. 2022, arXiv 2208.01626), from DDIM inversion.

The given video and the new one are sampled next to each other. In the first steps the new one's tokens attend to its
words with the weights with which the given video's attend to its own words (replacement, section 3.1 "word swap"), and
in all steps the weights of single words may be scaled ("attention re-weighting").

Both change what goes into attention, not attention itself, so that every kernel computes them. Weights are a function
of queries and keys: with those of the given video and the values of the new caption attention has replaced weights. And
a weight c p_j of word j adds c p_j v_j, which is p_j times the value c v_j.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import ExtraKeys
from vdm_jax.configuration import Share, config
from vdm_jax.diffusion.arrays import Level, Video
from vdm_jax.diffusion.inversion import ddim_inverted, sampled_from, steps_from
from vdm_jax.diffusion.windows import ConditionalDenoiser
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.attention_maps import in_main_network
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion, held_of
from vdm_jax.generation.editing.parts import EditParts
from vdm_jax.generation.editing.words import WordEdits, Words, words_of
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage


@config
class WordWeight:
    """How much a word of the new caption counts in cross-attention."""

    word: str
    weight: float = 1.0  # factor on its weights; 0 leaves it out

    def __post_init__(self):
        if not abs(self.weight) <= 100:
            raise UserError(f"WordWeight.weight={self.weight} of {self.word!r}; permitted: -100 to 100")


@config
class PromptToPrompt(DDIMInversion):
    """DDIM inversion with the given video's caption, then sampling of that video and of the new one, whose
    cross-attention is the given video's in the first steps. The captions have as many words, of as many tokens each.
    Stages that read no captions are edited by DDIM inversion."""

    name: ClassVar[str] = "prompt_to_prompt"
    needs_source: ClassVar[bool] = True
    samples_pairs: ClassVar[bool] = True

    cross_replace: Share = 0.8  # of the steps that are made, the first ones, whose cross-attention is replaced
    weights: tuple[WordWeight, ...] = ()

    def check(self, stage: Stage, sampling: Sampling) -> None:
        """Raise `UserError` for sampling whose estimates are not pairs with and without the caption, of whole
        videos."""
        for name in ("terms", "oscillation", "dynamic_guidance", "high_noise_guidance", "last_frame_guidance",
                     "windows"):
            if getattr(sampling, name):
                raise UserError(f"Stage {stage.name!r}: sampling.{name}={getattr(sampling, name)} with method="
                                f"{self.name!r}; permitted: guidance by one weight, and no windows",
                                "PromptToPrompt.check")
        if stage.takes_weight:
            raise UserError(f"Stage {stage.name!r}: a network that takes the weight of the guidance with method="
                            f"{self.name!r}; permitted: one that is guided by two estimates", "PromptToPrompt.check")

    def by_words(
        self, stage: Stage, generator: Generator, captions: Sequence[str], sources: Sequence[str] | None
    ) -> WordEdits | None:
        """Weights of the first tokens of the new captions. Raises `UserError` for captions whose words have other
        numbers of tokens than the given videos', a word that is not there or cut off, and several captions
        with a weighted word at different places."""
        if stage.network.text is None:
            return None
        found = set()
        for caption, source in zip(captions, sources, strict=True):
            words, own = (words_of(generator, stage, text) for text in (caption, source))
            if self.cross_replace and words.counts != own.counts:
                raise UserError(f"captions {source!r} and {caption!r} have words of {list(own.counts)} and "
                                f"{list(words.counts)} tokens; permitted: as many words of as many tokens each, or "
                                "cross_replace=0", "PromptToPrompt.captions")
            scales = token_factors(words, caption, self.weights)
            found.add(tuple(np.trim_zeros(scales - 1, "b") + 1))  # further tokens have weight 1
        if len(found) > 1:
            raise UserError("weights of words at different places of several captions; permitted: one caption, or "
                            "words at the same places", "PromptToPrompt.weights")
        return WordEdits(tuple(map(float, found.pop())))

    def crossed(
        self, stage: Stage, token_weights: tuple[float, ...], levels: Float[np.ndarray, " steps"], estimates: int,
        estimate: Callable[[Stage], ConditionalDenoiser],
    ) -> ConditionalDenoiser:
        """The network's estimate of pairs of videos, of each so many estimates, the first with the caption."""
        count, made = len(levels), int(len(levels) * self.strength)
        replaced = count - made + steps_replaced(made, self.cross_replace)
        end = np.append(levels, np.inf)[replaced]  # log-SNR of the first step that keeps its own
        before = levels[replaced - 1] if replaced else -np.inf
        end = end if math.isinf(end) or math.isinf(before) else (end + before) / 2
        denoise = estimate(stage)

        def denoise_pairs(z: Video, logsnr: Level, conditioning: Any) -> Video:
            active = logsnr.reshape(-1, 2, estimates)[:, 0, 0] < end

            def intercept(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
                found = call(*arguments, **options)
                crosses = context.method_name == "crossing" and isinstance(context.module, Attention)
                if not crosses or not in_main_network(context.module):
                    return found
                return in_pairs(*found, active, token_weights, estimates)

            with nn.intercept_methods(intercept):
                return denoise(z, logsnr, conditioning)

        return denoise_pairs

    def edit(self, x: Video, parts: EditParts) -> Video:
        """The edited video, or latents."""
        if parts.pair is None:
            return super().edit(x, parts)
        steps, process = steps_from(parts.steps, self.strength), parts.process
        if not len(steps.level):
            return x
        z = ddim_inverted(parts.source, x, steps, process.schedule.family, refinements=self.refinements,
                          held=held_of(process))[0]
        denoise, keys = parts.pair
        both = sampled_from(jnp.repeat(z, 2, axis=0), parts.sampler, denoise, keys, steps, process)
        return both[1::2]


def token_factors(words: Words, caption: str, weights: Sequence[WordWeight]) -> Float[np.ndarray, " L"]:
    """Factors on the first tokens of a caption, by the weights of its words. Raises `UserError` for a word that is not
    there or cut off."""
    scales = np.ones(1 + max((place for some in words.places for place in some), default=0))
    for each in weights:
        if each.word.lower() not in words.words:
            raise UserError(f"weight of {each.word!r}, which is no word of {caption!r}; permitted: "
                            f"{', '.join(words.words)}", "PromptToPrompt.weights")
        for word, places in zip(words.words, words.places, strict=True):
            if word == each.word.lower() and not places:
                raise UserError(f"weight of {each.word!r}, which is cut off {caption!r}, of which the network reads "
                                f"{sum(words.counts)} tokens; permitted: words before that, or a shorter caption",
                                "PromptToPrompt.weights")
            if word == each.word.lower():
                scales[list(places)] = each.weight
    return scales


def steps_replaced(made: int, share: float) -> int:
    """The ceiling of a share of the steps that are made, whatever the rounding of the product: 0.55 of 100 is 55."""
    return math.ceil(round(made * share, 6))


def in_pairs(
    q: Float[Array, "N *thw K D"], outside: ExtraKeys, active: Bool[Array, " B"], token_weights: Sequence[float],
    estimates: int,
) -> tuple[Float[Array, "N *thw K D"], ExtraKeys]:
    """Queries, keys and values of cross-attention in a batch of pairs of a given video and a new one, of so many
    estimates each: of the first estimate of the new one queries and keys are the given video's where `active`, and its
    values are scaled by `token_weights` of the first tokens."""

    def of_pairs(a: Array) -> Array:
        return jnp.asarray(a).reshape(-1, 2, estimates, *a.shape[1:])

    def replaced(a: Array) -> Array:
        pairs = of_pairs(a)
        own, given = pairs[:, 1, 0], pairs[:, 0, 0]
        chosen = jnp.where(active.reshape(-1, *[1] * (own.ndim - 1)), given, own)
        return pairs.at[:, 1, 0].set(chosen).reshape(a.shape)

    scale = jnp.ones(outside.v.shape[2]).at[: len(token_weights)].set(jnp.array(token_weights))
    values = of_pairs(outside.v)
    values = values.at[:, 1, 0].multiply(scale[:, None, None].astype(values.dtype)).reshape(outside.v.shape)
    mask = None if outside.mask is None else replaced(outside.mask)
    return replaced(q), ExtraKeys(replaced(outside.k), values, mask)
