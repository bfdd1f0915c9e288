"""Sampling one stage: network, guidance, threshold and sampler composed into a pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Int, Key

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.control import at_step, without_guessed
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.configuration import Seed, check_value
from vdm_jax.diffusion.arrays import Denoiser
from vdm_jax.diffusion.caching import CachedDenoiser, Through
from vdm_jax.diffusion.conditional import reconstruction_guided, replaced, shown_clean
from vdm_jax.diffusion.consistency import consistent_estimate
from vdm_jax.diffusion.guidance import (
    Estimates,
    batched,
    by_step,
    combine,
    dynamic_threshold,
    in_turn,
    oscillating,
    static_threshold,
)
from vdm_jax.diffusion.sampling import sample, sampling_levels
from vdm_jax.diffusion.scheduler_steps import Discretisation
from vdm_jax.diffusion.thresholds import Threshold
from vdm_jax.diffusion.windows import ConditionalDenoiser, following, windowed
from vdm_jax.errors import UserError, unknown_kind
from vdm_jax.generation.block_sampling import sample_by_blocks
from vdm_jax.generation.stage_conditioning import masked_pixels, stage_conditioning
from vdm_jax.generation.token_weights import weighted_tokens
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.skips import Deep
from vdm_jax.networks.transformer.levels import is_noisy
from vdm_jax.parallel.rules import batch_parts, batch_sharding, shard_along
from vdm_jax.stages.latent import decode
from vdm_jax.stages.options import DynamicThreshold, Sampling, StaticThreshold
from vdm_jax.stages.stage import Stage

Embedded = tuple[Float[ArrayLike, " N"], Float[ArrayLike, " N"]]  # log-SNRs, and those that the network embeds there
# An estimate made of those of stages whose networks have the same parameters
Composed = Callable[[Callable[[Stage], ConditionalDenoiser]], ConditionalDenoiser]


def sample_keys(seed: int, indices: Int[Array, " B"], stage: int) -> Key[Array, " B"]:
    """One key per video from the seed, the video's index and the stage's place in the cascade: a video does not
    depend on what else is in its batch. Raises `UserError` for a seed that other seeds equal."""
    check_value(seed, Seed, "seed")

    def fold(index: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), stage)

    return jax.vmap(fold)(indices)


def is_guided(stage: Stage, sampling: Sampling) -> bool:
    """Whether every step needs an estimate without the caption (or the class) too."""
    return sampling.guided and not stage.takes_weight and bool(sampling.terms or (
        stage.network.conditioning_frames if sampling.guided_by == "frames" else stage.network.prompted))


def estimates_of(stage: Stage, sampling: Sampling) -> int:
    """Estimates of a video that a step combines."""
    if sampling.terms:
        return len(in_turn({term.name: term.weight for term in sampling.terms})[0])
    return 2 if is_guided(stage, sampling) else 1


def sampling_parts(stage: Stage, sampling: Sampling, mesh: Mesh) -> int:
    """What the number of videos sampled at a time must be a multiple of. Raises `UserError` when guidance is to be
    split over an odd number of devices."""
    parts = batch_parts(mesh)
    if not (sampling.split_guidance and is_guided(stage, sampling)) or parts == 1:
        return parts
    if parts % 2:
        raise UserError(f"Sampling.split_guidance=True with {parts} devices along data x fsdp; permitted: an even "
                        "number")
    return parts // 2


def sampling_sharding(stage: Stage, sampling: Sampling, mesh: Mesh) -> NamedSharding:
    """Where keys, captions and videos of a batch live. With split guidance every device has them all, since a video
    belongs to two devices; what costs is the network, whose batch is split."""
    split = sampling.split_guidance and is_guided(stage, sampling)
    return NamedSharding(mesh, P()) if split else batch_sharding(mesh)


def inpainting_method(stage: Stage, sampling: Sampling) -> str:
    """How a stage takes conditioning frames."""
    otherwise = "noise_levels" if stage.process.frame_levels else "reconstruction"
    return sampling.inpainting.method or ("network" if stage.network.conditioning_frames else otherwise)


def guidance_of(stage: Stage, sampling: Sampling) -> float | Float[Array, " N"]:
    """Weight of the guidance: a number, or one per frame; of guidance by names one for each."""
    if sampling.terms:
        return jnp.array([term.weight for term in sampling.terms], jnp.float32)
    if sampling.last_frame_guidance is None:
        return sampling.guidance
    return jnp.linspace(sampling.guidance, sampling.last_frame_guidance, stage.shape[0])


def dynamic_weights(stage: Stage, sampling: Sampling) -> Float[np.ndarray, " steps"]:
    """Weight of the guidance at each step, of `Sampling.dynamic_guidance`."""
    steps, scale = sampling.steps, 1 + sampling.guidance
    timesteps = released_steps(stage, sampling)[0].timesteps.numbers[:steps].astype(np.float64)
    return (scale / 2 * (1 - np.cos(np.pi * ((steps - timesteps) / steps) ** 5))).astype(np.float32)


def released_steps(stage: Stage, sampling: Sampling) -> tuple[Discretisation | None, Embedded | None]:
    """The steps of a released scheduler, and the log-SNRs at which its network embeds their noise; None where the
    sampler goes by its grid. Raises `UserError` for numbers of steps that it cannot take."""
    if sampling.scheduler is None:
        return None, None
    schedule, network = stage.process.schedule, stage.network
    tokens = max(network.attended(*stage.shape[:3]), default=None) if sampling.scheduler.flow else None
    found = sampling.scheduler.discretise(schedule, sampling.steps, tokens)
    return found, found.timesteps.log_snrs(schedule if sampling.scheduler.flow else getattr(network, "timesteps", None))


def stage_denoiser(
    stage: Stage, params: Any, conditioning: Conditioning, sampling: Sampling, levels: Float[ArrayLike, " steps"],
    masked_video: MaskedVideo | None = None, *, weight: Float[ArrayLike, " ..."] | None = None,
    embedded: Embedded | None = None, through: Through | None = None, composed: Composed | None = None,
) -> Denoiser:
    """`(z, logsnr) -> x_hat` with classifier-free guidance (all estimates in one batch, which devices share) and
    thresholding, for masked videos too; `levels` are those of the sampler's steps. `weight` of the guidance is the
    sampling's own by default; `embedded` is where a released scheduler has its network embed another noise level;
    `through` is where the network's features inside the skip connection of `sampling.cache` come from; `composed` makes
    the network's estimate, of those of networks with the same parameters."""
    deep = None if through is None else Deep(sampling.cache.branch, through)

    def estimate(stage: Stage) -> ConditionalDenoiser:
        return _estimate(stage, params, levels, embedded, deep)

    denoise_with = estimate(stage) if composed is None else composed(estimate)
    whole = _in_windows(stage, sampling, denoise_with, levels)
    denoise = _guided(stage, sampling, whole, denoise_with, conditioning, levels, weight)
    # Before thresholds, which stop gradients.
    if masked_video is not None and inpainting_method(stage, sampling) == "reconstruction":
        denoise = reconstruction_guided(denoise, masked_video.errors(), sampling.inpainting.weight,
                                        stage.process.schedule.family)
    denoise = with_threshold(denoise, sampling)
    if sampling.consistency is not None:
        denoise = consistent_estimate(denoise, stage.process.schedule, sampling.consistency)
    if masked_video is None:
        return denoise
    if inpainting_method(stage, sampling) == "noise_levels":
        level = levels[-1] if sampling.inpainting.level is None else sampling.inpainting.level
        denoise = shown_clean(denoise, masked_video.video, masked_video.mask, level, stage.process.schedule.family)
    return replaced(denoise, masked_video.video, masked_video.mask)


def sampling_denoiser(
    stage: Stage, params: Any, conditioning: Conditioning, sampling: Sampling, levels: Float[ArrayLike, " steps"],
    masked_video: MaskedVideo | None = None, **options: Any,
) -> Denoiser | CachedDenoiser:
    """`stage_denoiser`, which keeps features from step to step where the sampling says so. Raises `UserError` for
    inpainting that differentiates the network as well."""
    arguments = (stage, params, conditioning, sampling, levels, masked_video)
    if sampling.cache is None:
        return stage_denoiser(*arguments, **options)
    if masked_video is not None and inpainting_method(stage, sampling) == "reconstruction":
        raise UserError(f"Stage {stage.name!r}: sampling.cache={sampling.cache} with reconstruction guidance, whose "
                        "gradient is of the whole network; permitted: None, or another inpainting.method",
                        "Sampling.cache")

    def denoise_of(through: Through) -> Denoiser:
        return stage_denoiser(*arguments, **options, through=lambda make: shard_along(
            through(make), "batch", dim=0, must=False))

    return CachedDenoiser(denoise_of, sampling.cache)


def _estimate(
    stage: Stage, params: Any, levels: Float[ArrayLike, " steps"], embedded: Embedded | None, deep: Deep | None = None
) -> ConditionalDenoiser:
    """`(z, logsnr, conditioning) -> x_hat` by the network."""
    module, options = network_module(stage.network), {} if deep is None else {"deep": deep}

    def denoise_with(z: Array, logsnr: Array, condition: Conditioning) -> Array:
        condition = at_step(condition, logsnr, jnp.asarray(levels))

        def network(x: Array, level: Array) -> Array:
            level = level if embedded is None else jnp.interp(level, *embedded)
            with weighted_tokens(condition.token_weights):
                return module.apply({"params": params}, x, level, condition, **options)

        return stage.process.denoiser(network)(z, logsnr)

    return denoise_with


def _in_windows(
    stage: Stage, sampling: Sampling, denoise_with: ConditionalDenoiser, levels: Float[ArrayLike, " steps"]
) -> ConditionalDenoiser:
    """The estimate of all frames, where the sampling says so from windows of them."""
    windows = sampling.windows
    if windows is None:
        return denoise_with
    cut, sizes = _cut(stage), {"frames": stage.shape[0], "length": windows.frames}
    if windows.follows:
        return following(denoise_with, cut, **sizes, behind=windows.overlap, clean=levels[-1])
    return windowed(denoise_with, cut, **sizes, overlap=windows.overlap, chunk=windows.chunk)


def _cut(stage: Stage) -> Callable[[Conditioning, Any, int], Conditioning]:
    return lambda whole, start, length: whole.window(start, length, stage.shape[0])


def _guided(
    stage: Stage, sampling: Sampling, denoise_with: ConditionalDenoiser, alone: ConditionalDenoiser,
    conditioning: Conditioning, levels: Float[ArrayLike, " steps"], weight: Float[ArrayLike, " ..."] | None,
) -> Denoiser:
    """`denoise_with` the conditioning and with guidance: by names, of two estimates, or by a network that takes the
    weight. `alone` is for estimates of single frames, without windows."""
    if sampling.terms:
        return _guided_by_names(stage, sampling, denoise_with, alone, conditioning, weight)
    if not is_guided(stage, sampling) and not stage.takes_weight:
        return lambda z, logsnr: denoise_with(z, logsnr, conditioning)
    if weight is None and sampling.dynamic_guidance:
        weight = by_step(dynamic_weights(stage, sampling), jnp.asarray(levels))
    weight, swing = guidance_of(stage, sampling) if weight is None else weight, sampling.oscillation
    if swing is not None:
        weight = oscillating(weight, swing.low, jnp.asarray(levels), swing.constant_steps)
    if sampling.high_noise_guidance is not None:
        weight = of_experts(weight, sampling.high_noise_guidance, stage.network.boundary)
    if stage.takes_weight:
        def denoise(z: Array, logsnr: Array) -> Array:
            given = jnp.broadcast_to(weight(logsnr) if callable(weight) else jnp.float32(weight), logsnr.shape[:1])
            return denoise_with(z, logsnr, conditioning.adding({"scalars": {WEIGHT: given}}))

        return denoise

    def denoise_halves(*stacked: Any) -> Array:  # a sample's estimates are neighbours in the batch
        if sampling.split_guidance:
            stacked = jax.tree.map(lambda x: shard_along(x, "batch", dim=0), stacked)
        return denoise_with(*stacked)

    lacking = without_guessed(conditioning.without(sampling.guided_by))
    return combine(batched(denoise_halves, [conditioning, lacking]), [(0, 1, weight)])


def of_experts(
    low: float | Float[ArrayLike, ""], high: float, boundary: float
) -> Callable[[Float[Array, " B"]], Float[Array, " B"]]:
    """The weight of the guidance by the noise level: another from sigma `boundary` of a flow on."""
    return lambda logsnr: jnp.where(is_noisy(logsnr, boundary), high, low)


def _guided_by_names(
    stage: Stage, sampling: Sampling, denoise_with: ConditionalDenoiser, alone: ConditionalDenoiser,
    conditioning: Conditioning, weight: Float[ArrayLike, " terms"] | None,
) -> Denoiser:
    """Guidance by the names of `sampling.terms`, in their order."""
    def frame_by_frame(z: Array, logsnr: Array, condition: Conditioning) -> Array:
        frames = z.shape[1]
        return windowed(alone, _cut(stage), frames=frames, length=1, overlap=0, chunk=frames)(z, logsnr, condition)

    by_name = {term.name: term.weight if weight is None else weight[place]
               for place, term in enumerate(sampling.terms)}
    lacking, terms = in_turn(by_name)
    return combine(named_estimates(denoise_with, frame_by_frame, conditioning, lacking), terms)


def with_threshold(denoise: Denoiser, sampling: Sampling) -> Denoiser:
    """The denoiser with the threshold of the sampling."""
    match sampling.threshold:
        case StaticThreshold():
            return static_threshold(denoise)
        case DynamicThreshold(percentile=percentile, per=per):
            return dynamic_threshold(denoise, percentile, per)
        case Threshold() as threshold:
            return lambda z, logsnr: threshold(denoise(z, logsnr))
        case None:
            return denoise
        case other:
            raise unknown_kind("Sampling.threshold", other, (StaticThreshold, DynamicThreshold, Threshold))


def named_estimates(
    whole: ConditionalDenoiser, frame_by_frame: ConditionalDenoiser, conditioning: Conditioning,
    lacking: Sequence[Sequence[str]],
) -> Estimates:
    """The estimates that lack the conditions of some names, all in one call of the network; those that lack "time" in
    one call of `frame_by_frame`."""
    groups = []
    for denoise, still in ((whole, False), (frame_by_frame, True)):
        places = [place for place, names in enumerate(lacking) if ("time" in names) == still]
        conditionings = [conditioning.without_named([n for n in lacking[place] if n != "time"]) for place in places]
        conditionings = [without_guessed(one) if lacking[place] else one
                         for place, one in zip(places, conditionings, strict=True)]
        groups += [(places, batched(denoise, conditionings))] if places else []

    def estimates(z: Array, logsnr: Array) -> tuple[Array, ...]:
        found = {place: x for places, some in groups for place, x in zip(places, some(z, logsnr), strict=True)}
        return tuple(found[place] for place in range(len(lacking)))

    return estimates


def precomputes(stage: Stage, sampling: Sampling) -> bool:
    """Whether the network makes something of its conditioning once per video. Guidance by names also needs estimates
    without a map, or without what a reference picture is seen with, so that it is then made in every call."""
    maps = {entry.name for entry in stage.network.entering("residuals")}
    by_names = any(term.name in maps or stage.network.reference_net for term in sampling.terms)
    return stage.network.precomputes and not by_names


def precomputed(stage: Stage, sampling: Sampling, params: Any, conditioning: Conditioning) -> Conditioning:
    """The conditioning with what the network makes of it once per video."""
    if not precomputes(stage, sampling):
        return conditioning
    return network_module(stage.network).apply({"params": params}, conditioning, method="precompute")


def finished(
    stage: Stage, x: Float[Array, "B T1 H1 W1 C"], low: Float[Array, "B T2 H2 W2 3"] | None,
    masked_video: MaskedVideo | None, autoencoder: Any = None,
) -> Float[Array, "B T H W 3"]:
    """Videos in [-1, 1] of what a sampler ends with, pixels or latents. Latents do not give back the given
    pixels, which are therefore set, but for a network that makes all latents itself (`Conditioned.masks_frames`)."""
    if stage.latent is None:
        return jnp.clip(jnp.broadcast_to(x, (*x.shape[:-1], 3)), -1, 1)
    x, masked_video = decode(stage.latent, autoencoder, x), masked_pixels(stage, low, masked_video)
    made = masked_video is None or stage.network.masks_frames
    return x if made else jnp.where(masked_video.mask > 0, masked_video.video, x)


def stage_levels(stage: Stage, sampling: Sampling) -> np.ndarray:
    """Log-SNRs at which the steps of a stage's sampler begin."""
    if sampling.scheduler is not None:
        return released_steps(stage, sampling)[0].steps.level
    return np.asarray(sampling_levels(sampling.sampler, stage.process.schedule, sampling.steps))


def sample_stage(
    stage: Stage, sampling: Sampling, params: Any, keys: Key[Array, " B"], text: Conditioning,
    low: Float[Array, "B T2 H2 W2 3"] | None = None, autoencoder: Any = None, *,
    levels: Float[ArrayLike, " steps"] | None = None, masked_video: MaskedVideo | None = None,
    stop: float | None = None, truncated: bool = False,
) -> Float[Array, "B T H W 3"]:
    """Videos of one stage, in [-1, 1].

    Args:
      stage, sampling: static; `sampling` replaces the stage's own defaults.
      params: of the stage's network.
      keys: `[B]`, one per video.
      text: what is asked for (`prompts.requested_conditioning`): captions, which a stage that reads none leaves alone,
        a class, references; also frame validity, and scalar "fps" where it is not the stage's own.
      low: the video of the stage before, for a stage with a source.
      autoencoder: weights, for a stage that works in latents.
      masked_video: a part of the videos that is given, and comes out as it is.
      levels: of the sampler's steps, where they cannot be evaluated here; see `diffusion.sampling.sample`.
      stop: log-SNR at which to stop; the noisy videos there, of any range, are returned.
      truncated: `low` is what the stage before has where it stopped, and is not augmented.
    """
    conditioning, inside = stage_conditioning(stage, sampling, keys, text, low, masked_video, autoencoder,
                                              corrupt=not truncated)
    conditioning = precomputed(stage, sampling, params, conditioning)
    released, embedded = released_steps(stage, sampling)
    if levels is None:
        levels = stage_levels(stage, sampling)
    denoise = sampling_denoiser(stage, params, conditioning, sampling, levels, inside, embedded=embedded)
    shape = (keys.shape[0], *stage.shape)
    if sampling.by_blocks:
        if inside is not None or stop is not None:
            raise UserError(f"stage {stage.name!r}: sampling.by_blocks=True with parts of the video that are given, or "
                            "a stage after it that goes on from noise; permitted: neither")
        if conditioning.token_weights is not None:
            raise UserError(f"stage {stage.name!r}: sampling.by_blocks=True with token_weights; permitted: None, or "
                            "by_blocks=False", "Sampling.by_blocks")
        lacking = [without_guessed(conditioning.without(sampling.guided_by))] if is_guided(stage, sampling) else []
        x = sample_by_blocks(stage, sampling, params, keys, [conditioning, *lacking], levels, released,
                             embedded=embedded, finish=lambda denoise: with_threshold(denoise, sampling))
        return finished(stage, x, low, masked_video, autoencoder)
    x = sample(sampling.sampler, denoise, keys, shape, stage.process, sampling.steps, levels=levels,
               shared_noise=sampling.shared_noise, stop=stop, frame_lag=sampling.frame_lag, discretisation=released,
               frame_schedule=sampling.frame_schedule)
    return finished(stage, x, low, masked_video, autoencoder) if stop is None else x
