"""Editing videos of one stage: two denoisers, of the given video's caption and of the new one, and a method."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Key

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.control import of_last_steps
from vdm_jax.diffusion.arrays import Denoiser, Level, Video
from vdm_jax.diffusion.inversion import skipped_steps
from vdm_jax.diffusion.null_text import Null, NullDenoiser
from vdm_jax.diffusion.sampling import steps_between
from vdm_jax.diffusion.steps import Step
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.methods import EditMethod
from vdm_jax.generation.editing.parts import EditParts, NullParts, PairParts, WordParts
from vdm_jax.generation.editing.words import WordEdits
from vdm_jax.generation.one_stage import (
    finished,
    is_guided,
    precomputed,
    released_steps,
    sampling_sharding,
    stage_denoiser,
    stage_levels,
)
from vdm_jax.generation.stage_conditioning import stage_conditioning
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.stages.latent import encode, weight_shardings
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import LowResolution, Stage


class EditSampling(NamedTuple):
    """How a stage is edited; static."""

    method: EditMethod
    target: Sampling  # of the new caption
    source: Sampling  # of the given video's caption: the same steps, its own guidance
    words: WordEdits | None = None  # for editing by attention to words; None: without


class Edits(NamedTuple):
    """Videos of a stage in [-1, 1]."""

    edited: Float[Array, "B T H W 3"]
    again: Float[Array, "B T H W 3"] | None  # by the same method with the given video's own caption and guidance
    carry: Any = None  # what the clip after this one is made with, of methods by key frames


def edit_sampling(stage: Stage, sampling: Sampling, method: EditMethod, source_guidance: float) -> EditSampling:
    """How a stage is edited by a method; all frames are at one noise level. Raises `UserError` for stages that make
    videos otherwise than from noise or a low-resolution video, and for methods that they cannot be inverted by."""
    where = f"Stage {stage.name!r}"
    if not isinstance(stage.source, LowResolution | None):
        raise UserError(f"{where}: source={type(stage.source).__name__} cannot be edited; permitted: stages that make "
                        "videos of noise or of a low-resolution video")
    if sampling.windows is not None and sampling.windows.follows:
        raise UserError(f"{where}: sampling.windows.follows=True cannot be edited; permitted: False")
    if sampling.by_blocks:
        raise UserError(f"{where}: sampling.by_blocks=True cannot be edited, which is done to all frames at one noise "
                        "level; permitted: False", "Sampling.by_blocks")
    if method.inverts and sampling.consistency is not None:
        raise UserError(f"{where}: sampling.consistency={sampling.consistency} with method={method.name!r}, which "
                        "inverts a diffusion and no consistency model; permitted: 'sdedit'")
    target = method.sampling(dataclasses.replace(sampling, frame_lag=0, frame_schedule=None, cache=None))
    source = dataclasses.replace(target, guidance=source_guidance, terms=(), last_frame_guidance=None,
                                 high_noise_guidance=None, oscillation=None, dynamic_guidance=False)
    for each in (target, source):
        dataclasses.replace(stage, sampling=each)  # raises where the stage cannot do it
    method.check(stage, target)
    return EditSampling(method, target, source)


def edit_stage(
    stage: Stage, how: EditSampling, params: Any, keys: Key[Array, " B"], captions: tuple[Conditioning, Conditioning],
    low: tuple[Float[Array, "B T2 H2 W2 3"], Float[Array, "B T2 H2 W2 3"]] | None, video: Float[Array, "B T H W 3"],
    autoencoder: Any = None, *, levels: Float[ArrayLike, " steps"] | None = None, again: bool = False,
) -> Edits:
    """A stage's videos, edited; jittable with stage and `how` static.

    Args:
      captions: what the given videos show, and what they shall show.
      low: for a stage with a source, the given videos and the edited ones of the stage before.
      video: the given videos, in [-1, 1].
      levels: of the sampler's steps, where they cannot be evaluated here.
      again: also go back to the given video with its own caption, to see what the way costs.
    """
    parts = edit_parts(stage, how, params, keys, captions, low, autoencoder, levels)
    low = (None, None) if low is None else low
    x = encoded_video(stage, video, autoencoder)

    def made(parts: EditParts, low: Any) -> Array:
        return finished(stage, how.method.edit(x, parts), low, None, autoencoder)

    return Edits(made(parts, low[1]), made(parts.there_and_back(), low[0]) if again else None)


def edit_parts(
    stage: Stage, how: EditSampling, params: Any, keys: Key[Array, " B"], captions: tuple[Conditioning, Conditioning],
    low: tuple[Any, Any] | None, autoencoder: Any, levels: Float[ArrayLike, " steps"] | None = None,
) -> EditParts:
    """The stage as the functions that a method sees; arguments as of `edit_stage`."""
    levels = stage_levels(stage, how.target) if levels is None else levels
    _, embedded = released_steps(stage, how.target)
    low = (None, None) if low is None else low
    made = len(levels) - skipped_steps(len(levels), how.method.strength)
    captions = tuple(of_last_steps(text, made, len(levels)) for text in captions)

    def conditioned(sampling: Sampling, text: Conditioning, low: Any) -> Conditioning:
        conditioning, _ = stage_conditioning(stage, sampling, keys, text, low, None, autoencoder)
        return precomputed(stage, sampling, params, conditioning)

    def denoiser(sampling: Sampling, conditioning: Conditioning) -> Denoiser:
        return stage_denoiser(stage, params, conditioning, sampling, levels, embedded=embedded,
                              composed=functools.partial(how.method.composed, stage))

    def with_null(place: int, null: Null) -> NullDenoiser:
        given = conditioned(how.target, with_null_embeddings(captions[place], null), low[place])

        def denoise(z: Video, logsnr: Level, null: Null) -> Video:  # in loops and gradients, which condition nothing
            return denoiser(how.target, given.replace(null_embeddings=null))(z, logsnr)

        return denoise

    null = null_embeddings(stage, captions[1]) if how.method.optimises_null else None
    nulls = None if null is None else NullParts(null, with_null(0, null), with_null(1, null))
    given = stage, how, params, keys, captions, low, autoencoder, levels
    pair = pair_parts(*given) if how.words is not None and how.method.samples_pairs else None
    words = None if how.words is None else WordParts(how.words, 1 + is_guided(stage, how.target))
    source, target = (denoiser(sampling, conditioned(sampling, text, before))
                      for sampling, text, before in zip((how.source, how.target), captions, low, strict=True))
    return EditParts(
        source, target, keys, sampler_steps(stage, how.target, levels), stage.process, how.target.sampler,
        how.target.shared_noise, nulls, pair, words)


def pair_parts(
    stage: Stage, how: EditSampling, params: Any, keys: Key[Array, " B"], captions: tuple[Conditioning, Conditioning],
    low: tuple[Any, Any], autoencoder: Any, levels: Float[ArrayLike, " steps"],
) -> PairParts:
    """Each given video with its caption and guidance, and next to it the new one's."""

    def pairs(one: Any, other: Any) -> Any:
        return jax.tree.map(lambda *two: jnp.stack(two, 1).reshape(-1, *two[0].shape[1:]), one, other)

    keys = keys[np.repeat(np.arange(len(keys)), 2)]
    conditioning, _ = stage_conditioning(stage, how.target, keys, pairs(*captions), pairs(*low), None, autoencoder)
    conditioning = precomputed(stage, how.target, params, conditioning)
    _, embedded = released_steps(stage, how.target)
    guided = is_guided(stage, how.target)
    weight = jnp.tile(jnp.array([how.source.guidance, how.target.guidance])[:, None], (len(keys) // 2, 1))
    composed = functools.partial(how.method.crossed, stage, how.words.weights, np.asarray(levels), 1 + guided)
    return PairParts(stage_denoiser(stage, params, conditioning, how.target, levels, embedded=embedded,
                                    weight=weight if guided else None, composed=composed), keys)


def null_embeddings(stage: Stage, text: Conditioning) -> Null | None:
    """Embeddings of the null caption, as long as the captions', where the stage reads such: those that are given, or of
    latent networks, which take no mask, zeros."""
    if text.embeddings is not None and text.null_embeddings is None and isinstance(stage.network, LatentNetwork):
        return jnp.zeros_like(text.embeddings[:, 0])
    return text.null_embeddings


def with_null_embeddings(text: Conditioning, null: Null) -> Conditioning:
    """The conditioning with these embeddings of the null caption, all of which are seen where it had none."""
    mask = jnp.ones(null.shape[:2], bool) if text.null_mask is None else text.null_mask
    return text.replace(null_embeddings=null, null_mask=mask)


def sampler_steps(stage: Stage, sampling: Sampling, levels: Float[ArrayLike, " steps"]) -> Step:
    """The steps of a stage's sampler, stacked."""
    released, _ = released_steps(stage, sampling)
    return steps_between(levels) if released is None else released.steps


def encoded_video(stage: Stage, video: Float[Array, "B T H W 3"], autoencoder: Any) -> Float[Array, "B T2 H2 W2 C"]:
    """A video, or its latents, as the stage denoises it."""
    return video if stage.latent is None else encode(stage.latent, autoencoder, video)


def jit_edit(stage: Stage, how: EditSampling, again: bool, mesh: Mesh, shardings: Any) -> jax.stages.Wrapped:
    """`edit_stage` as `(params, keys, captions, low, video, *autoencoder) -> Edits`, jitted for a mesh; `shardings` are
    those of the parameters."""
    levels = np.asarray(stage_levels(stage, how.target))

    def function(params: Any, keys: Any, captions: Any, low: Any, video: Any, *autoencoder: Any) -> Edits:
        return edit_stage(stage, how, params, keys, captions, low, video, *autoencoder, levels=levels, again=again)

    batch = sampling_sharding(stage, how.target, mesh)
    placed = (shardings, batch, batch, batch, batch, *weight_shardings(stage.latent, mesh))
    return jax.jit(function, in_shardings=placed, out_shardings=batch, compiler_options=compiler_options(mesh))
