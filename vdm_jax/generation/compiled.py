"""The compiled programs that sample a stage: one for all steps, or one that takes a step at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.control import has_interval
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.diffusion.augmentation import TruncatedConditioningAugmentation
from vdm_jax.diffusion.caching import Cache
from vdm_jax.diffusion.sampling import Walk, check_steps, steps_between
from vdm_jax.generation.one_stage import (
    dynamic_weights,
    finished,
    guidance_of,
    inpainting_method,
    is_guided,
    precomputed,
    precomputes,
    released_steps,
    sample_stage,
    sampling_denoiser,
    sampling_sharding,
    stage_levels,
)
from vdm_jax.generation.stage_conditioning import stage_conditioning
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.rules import features_sharding
from vdm_jax.stages.latent import weight_shardings
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, augmentation_of


class Truncation(NamedTuple):
    """Where a stage is cut off from its neighbours (`TruncatedConditioningAugmentation`)."""

    stop: float | None = None  # log-SNR at which it stops, for the next one
    truncated: bool = False  # the one before has stopped


WHOLE = Truncation()
Watch = Callable[[int, jax.Array], None]  # number of a step (from 1) and its z


class Noise(NamedTuple):
    """Standard normal noise that is given; None: drawn from the keys."""

    initial: Float[Array, "B T H W C"] | None = None  # that sampling begins with, of videos or their latents
    picture: Float[Array, "B 1 H W 3"] | None = None  # on the picture that videos begin with


DRAWN = Noise()


def truncation(stages: Sequence[Stage], place: int) -> Truncation:
    """What a stage of a cascade that is sampled as a whole takes over and hands over."""
    def cut(stage: Stage) -> bool:
        return isinstance(augmentation_of(stage), TruncatedConditioningAugmentation)

    after = stages[place + 1] if place + 1 < len(stages) else None
    stop = after.source.augmentation.sampling_logsnr if after is not None and cut(after) else None
    return Truncation(stop, cut(stages[place]))


def jit_sampling(
    stage: Stage, sampling: Sampling, mesh: Mesh, shardings: Any, ends: Truncation = WHOLE
) -> jax.stages.Wrapped:
    """Sampling `(params, keys, text, low, masked_video) -> videos` of a stage jitted for a mesh, to be called or
    lowered with the mesh in context; `shardings` are those of the parameters, `low` and `masked_video` may be None. The
    weights of a latent stage's autoencoder are one more argument."""
    levels = stage_levels(stage, sampling)

    def function(params: Any, keys: Any, text: Conditioning, low: Any, masked_video: MaskedVideo | None,
                 *autoencoder: Any) -> Any:
        return sample_stage(stage, sampling, params, keys, text, low, *autoencoder, levels=levels,
                            masked_video=masked_video, **ends._asdict())

    batch = sampling_sharding(stage, sampling, mesh)
    placed = (shardings, batch, batch, batch, batch, *weight_shardings(stage.latent, mesh))
    return jax.jit(function, in_shardings=placed, out_shardings=batch, compiler_options=compiler_options(mesh))


def goes_by_steps(stage: Stage, sampling: Sampling, mesh: Mesh, masked_video: MaskedVideo | None) -> bool:
    """Whether `stepwise_sampling` is the quicker form: on a CPU, where XLA runs gradients of convolutions inside a loop
    13 to 40 times slower, for methods that differentiate the network."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return on_cpu and masked_video is not None and inpainting_method(stage, sampling) == "reconstruction"


class StepFunctions(NamedTuple):
    """Compiled functions that sample a stage step by step. They serve any number of steps, any plan of the steps that
    reuse features, any weight of the guidance and any prompt, so a large network is compiled once per size of video."""

    # (keys, text, low, masked_video, picture noise, *autoencoder) -> conditioning, masked_video
    prepare: Callable[..., Any]
    begin: Callable[..., Any]  # (keys, level, noise, standard deviation) -> carry
    # (params, keys, conditioning, masked_video, carry, step, weight, levels, embedded) -> carry
    advance: Callable[..., Any]
    precompute: Callable[..., Any]  # (params, conditioning) -> conditioning


def of_any_steps(stage: Stage, sampling: Sampling) -> tuple[Stage, Sampling]:
    """Stage and sampling without what `step_functions` do not depend on, by which they are kept."""
    terms = tuple(dataclasses.replace(term, scale=2.0) for term in sampling.terms)  # no weight is 0
    any_weight, distillation = float(is_guided(stage, sampling) and not terms), stage.training.distillation
    if stage.takes_weight and distillation is not None:  # one that the student has learnt
        any_weight = distillation.guidance[0]
    plan = None if sampling.cache is None else Cache(branch=sampling.cache.branch)  # `Step.whole` says the rest
    sampling = dataclasses.replace(sampling, steps=1, guidance=any_weight, terms=terms, batch_size=1,
                                   last_frame_guidance=None, scheduler=None, cache=plan, dynamic_guidance=False)
    latent = None if stage.latent is None else dataclasses.replace(stage.latent, decode_frames=None)
    return dataclasses.replace(stage, sampling=sampling, latent=latent), sampling


def of_features(stage: Stage, features: Any, mesh: Mesh) -> NamedSharding:
    """Where features live that go from one call of a step to the next."""
    return features_sharding(features.shape, getattr(stage.network, "sharded_axis", None), mesh)


def step_functions(stage: Stage, sampling: Sampling, mesh: Mesh, shardings: Any, ends: Truncation = WHOLE
                   ) -> StepFunctions:
    """The functions of a stage; `shardings` are those of its parameters."""
    batch, options = sampling_sharding(stage, sampling, mesh), compiler_options(mesh)
    weights = weight_shardings(stage.latent, mesh)

    def prepare(keys: Any, text: Conditioning, low: Any, masked_video: MaskedVideo | None, picture_noise: Any,
                *autoencoder: Any) -> Any:
        return stage_conditioning(stage, sampling, keys, text, low, masked_video, *autoencoder,
                                  corrupt=not ends.truncated, picture_noise=picture_noise)

    def walk(keys: Any, count: Any) -> Walk:
        return Walk(sampling.sampler, stage.process, (keys.shape[0], *stage.shape), count,
                    shared_noise=sampling.shared_noise)

    def advance(params: Any, keys: Any, conditioning: Conditioning, masked_video: MaskedVideo | None, carry: Any,
                step: Any, weight: Any, levels: Any, embedded: Any) -> Any:
        denoise = sampling_denoiser(stage, params, conditioning, sampling, levels, masked_video, weight=weight,
                                    embedded=embedded)
        (z, memory, *kept), _ = walk(keys, step.count).advance(denoise, keys, carry, step)
        return z, memory, *(jax.lax.with_sharding_constraint(x, of_features(stage, x, mesh)) for x in kept)

    def begin(keys: Any, level: Any, noise: Any, std: Any) -> Any:
        return walk(keys, 1).begin(keys, level, noise=noise, std=std)

    # Where what a sampler remembers lives is left open: its first dimension need not be the videos.
    return StepFunctions(
        jax.jit(prepare, in_shardings=(*(batch,) * 5, *weights), out_shardings=batch, compiler_options=options),
        jax.jit(begin, in_shardings=(batch, None, batch, None)),
        jax.jit(advance, in_shardings=(shardings, batch, batch, batch, *(None,) * 5), donate_argnums=4,
                compiler_options=options),
        jax.jit(functools.partial(precomputed, stage, sampling), in_shardings=(shardings, batch), out_shardings=batch,
                compiler_options=options))


def jit_finish(stage: Stage, sampling: Sampling, mesh: Mesh) -> jax.stages.Wrapped:
    """`finished` as `(x, low, masked_video, *autoencoder) -> videos`, compiled."""
    batch = sampling_sharding(stage, sampling, mesh)
    return jax.jit(lambda x, low, masked_video, *autoencoder: finished(stage, x, low, masked_video, *autoencoder),
                   in_shardings=(batch, batch, batch, *weight_shardings(stage.latent, mesh)), out_shardings=batch,
                   compiler_options=compiler_options(mesh))


def stepwise_sampling(
    stage: Stage, sampling: Sampling, mesh: Mesh, shardings: Any, ends: Truncation = WHOLE,
    watch: Watch = lambda step, z: None, *, functions: StepFunctions | None = None,
    finish: Callable[..., jax.Array] | None = None,
) -> Callable[..., jax.Array]:
    """`jit_sampling` with a program for one step, which is called for each; the same videos. `watch` is called with the
    number of each step (from 1) and its z. `functions` and `finish` are those of `step_functions` and `jit_finish`,
    made here by default. `noise` of a call replaces what keys draw."""
    batch = sampling_sharding(stage, sampling, mesh)
    functions = functions or step_functions(*of_any_steps(stage, sampling), mesh, shardings, ends)
    finish = finish or jit_finish(stage, sampling, mesh)
    released, embedded = released_steps(stage, sampling)
    levels = stage_levels(stage, sampling)
    check_steps(sampling.sampler, sampling.frame_lag, ends.stop, released is not None, sampling.frame_schedule)
    steps = released.steps if released is not None else steps_between(
        levels, ends.stop, sampling.frame_lag, stage.shape[0], sampling.frame_schedule)
    if sampling.cache is not None:
        steps = steps._replace(whole=np.broadcast_to(sampling.cache.whole(steps.index), steps.index.shape))
    std = None if released is None else np.float32(released.initial_std)
    follows = sampling.windows is not None and sampling.windows.follows
    shown = inpainting_method(stage, sampling) == "noise_levels"
    of_levels = sampling.oscillation or follows or shown  # what a step does
    count, weight = np.int32(sampling.steps), None
    if is_guided(stage, sampling) or stage.takes_weight:
        weight = np.asarray(guidance_of(stage, sampling), np.float32)
        if sampling.dynamic_guidance:
            weights = dynamic_weights(stage, sampling)

    def place(carry: Any) -> Any:  # what lives elsewhere would be compiled for anew
        def put(x: jax.Array) -> jax.Array:
            rows = x.ndim > 0 and x.shape[0] == carry[0].shape[0]
            return jax.device_put(x, batch if rows else NamedSharding(mesh, PartitionSpec()))

        return (*jax.tree.map(put, carry[:2]), *(jax.device_put(x, of_features(stage, x, mesh)) for x in carry[2:]))

    def function(params: Any, keys: Any, text: Any, low: Any, masked_video: Any, *autoencoder: Any,
                 noise: Noise = DRAWN) -> jax.Array:
        conditioning, inside = functions.prepare(keys, text, low, masked_video, noise.picture, *autoencoder)
        if precomputes(stage, sampling):
            conditioning = functions.precompute(params, conditioning)
        carry = place(functions.begin(keys, steps.level[0], noise.initial, std))
        by_level = of_levels or has_interval(conditioning)
        for i in range(len(steps.index)):
            step = jax.tree.map(lambda x, i=i: x[i], steps)._replace(count=count)
            of_step = weights[i] if sampling.dynamic_guidance and weight is not None else weight
            given = step, of_step, levels if by_level else levels[:1], embedded
            if not i and sampling.cache is not None:  # no features yet: without a second compilation
                shape = functions.advance.eval_shape(params, keys, conditioning, inside, carry, *given)[2]
                carry = (*carry, jnp.zeros(shape.shape, shape.dtype, device=of_features(stage, shape, mesh)))
            carry = place(functions.advance(params, keys, conditioning, inside, carry, *given))
            watch(i + 1, carry[0])
        return finish(carry[0], low, masked_video, *autoencoder) if ends.stop is None else carry[0]

    return function
