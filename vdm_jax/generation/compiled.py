"""The compiled programs that sample a stage: one for all steps, or one that takes a step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.frame_masks import Known
from vdm_jax.diffusion.augmentation import TruncatedAugmentation
from vdm_jax.diffusion.sampling import Walk, check_lag, sampling_levels, steps_between
from vdm_jax.generation.one_stage import (
    completion_method,
    finished,
    sample_stage,
    sampling_sharding,
    stage_conditioning,
    stage_denoiser,
)
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.stages.latent import weight_shardings
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, augmentation_of


class Handover(NamedTuple):
    """Where a stage is cut off from its neighbours (`TruncatedAugmentation`)."""

    stop: float | None = None  # log-SNR at which it stops, for the next one
    truncated: bool = False  # the one before has stopped


WHOLE = Handover()


def handover(stages: Sequence[Stage], place: int) -> Handover:
    """What a stage of a cascade that is sampled as a whole takes over and hands over."""
    def cut(stage: Stage) -> bool:
        return isinstance(augmentation_of(stage), TruncatedAugmentation)

    after = stages[place + 1] if place + 1 < len(stages) else None
    stop = after.source.augmentation.sampling_logsnr if after is not None and cut(after) else None
    return Handover(stop, cut(stages[place]))


def jit_sampling(
    stage: Stage, sampling: Sampling, mesh: Mesh, shardings: Any, ends: Handover = WHOLE
) -> jax.stages.Wrapped:
    """Sampling `(params, keys, text, low, known) -> videos` of a stage jitted for a mesh, to be called or lowered with
    the mesh in context; `shardings` are those of the parameters, `low` and `known` may be None. The weights of a latent
    stage's autoencoder are one more argument."""
    levels = _levels(stage, sampling)

    def function(params: Any, keys: Any, text: Conditioning, low: Any, known: Known | None, *autoencoder: Any) -> Any:
        return sample_stage(stage, sampling, params, keys, text, low, *autoencoder, levels=levels, known=known,
                            **ends._asdict())

    batch = sampling_sharding(stage, sampling, mesh)
    placed = (shardings, batch, batch, batch, batch, *weight_shardings(stage.latent, mesh))
    return jax.jit(function, in_shardings=placed, out_shardings=batch, compiler_options=compiler_options(mesh))


def goes_by_steps(stage: Stage, sampling: Sampling, mesh: Mesh, known: Known | None) -> bool:
    """Whether `stepwise_sampling` is the quicker form: on a CPU, where XLA runs gradients of convolutions inside a loop
    13 to 40 times slower, for methods that differentiate the network."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return on_cpu and known is not None and completion_method(stage, sampling) == "reconstruction"


def stepwise_sampling(
    stage: Stage, sampling: Sampling, mesh: Mesh, shardings: Any, ends: Handover = WHOLE,
    watch: Callable[[int, jax.Array], None] = lambda step, z: None,
) -> Callable[..., jax.Array]:
    """`jit_sampling` with a program for one step, which is called for each; the same videos. `watch` is called with the
    number of each step (from 1) and its z."""
    levels, batch = _levels(stage, sampling), sampling_sharding(stage, sampling, mesh)
    check_lag(sampling.sampler, sampling.frame_lag, ends.stop)
    steps = steps_between(levels, ends.stop, sampling.frame_lag, stage.shape[0])
    options = compiler_options(mesh)
    weights = weight_shardings(stage.latent, mesh)

    def walk(keys: Any) -> Walk:
        return Walk(sampling.sampler, stage.process, (keys.shape[0], *stage.shape), sampling.steps,
                    shared_noise=sampling.shared_noise)

    def advance(params: Any, keys: Any, text: Conditioning, low: Any, known: Known | None, carry: Any, step: Any,
                *autoencoder: Any) -> Any:
        conditioning, known = stage_conditioning(stage, sampling, keys, text, low, known, *autoencoder,
                                                 corrupt=not ends.truncated)
        denoise = stage_denoiser(stage, params, conditioning, sampling, levels, known)
        return walk(keys).advance(denoise, keys, carry, step)[0]

    begin = jax.jit(lambda keys: walk(keys).begin(keys, steps.level[0]), in_shardings=batch, out_shardings=batch)
    one = jax.jit(advance, in_shardings=(shardings, batch, batch, batch, batch, batch, None, *weights),
                  out_shardings=batch, donate_argnums=5, compiler_options=options)
    end = jax.jit(lambda x, low, known, *autoencoder: finished(stage, x, low, known, *autoencoder),
                  in_shardings=(batch, batch, batch, *weights), out_shardings=batch, compiler_options=options)

    def function(params: Any, keys: Any, text: Any, low: Any, known: Any, *autoencoder: Any) -> jax.Array:
        carry = begin(keys)
        for i in range(len(steps.index)):
            step = jax.tree.map(lambda x, i=i: x[i], steps)
            carry = one(params, keys, text, low, known, carry, step, *autoencoder)
            watch(i + 1, carry[0])
        return end(carry[0], low, known, *autoencoder) if ends.stop is None else carry[0]

    return function


def _levels(stage: Stage, sampling: Sampling) -> np.ndarray:
    return np.asarray(sampling_levels(sampling.sampler, stage.process.schedule, sampling.steps))
