"""Sampling one stage: network, guidance, threshold and sampler composed into a pure function."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vdm_jax.cascade.inputs import with_low_resolution
from vdm_jax.cascade.stage import DynamicThreshold, Sampling, Stage, StaticThreshold
from vdm_jax.conditioning.conditioning import Conditioning
from vdm_jax.diffusion.arrays import Denoiser
from vdm_jax.diffusion.guidance import batched, combine, dynamic_threshold, static_threshold
from vdm_jax.diffusion.sampling import sample
from vdm_jax.networks.unet import SpaceTimeUNet


def sample_keys(seed: int, indices: Int[Array, b], stage: int) -> PRNGKeyArray:
    """One key per video from the seed, the video's index and the stage's place in the cascade: a video does not
    depend on what else is in its batch."""
    def fold(index: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), stage)

    return jax.vmap(fold)(indices)


def stage_denoiser(stage: Stage, params: Any, conditioning: Conditioning, sampling: Sampling) -> Denoiser:
    """`(z, logsnr) -> x_hat` with classifier-free guidance (both halves in one batch) and thresholding."""
    module = SpaceTimeUNet(stage.network)

    def denoise_with(z: Array, logsnr: Array, condition: Conditioning) -> Array:
        return stage.process.denoiser(lambda x, level: module.apply({"params": params}, x, level, condition))(z, logsnr)

    if sampling.guidance and stage.network.text is not None:
        both = batched(denoise_with, [conditioning, conditioning.without_text()])
        denoise = combine(both, [(0, 1, sampling.guidance)])
    else:
        def denoise(z: Array, logsnr: Array) -> Array:
            return denoise_with(z, logsnr, conditioning)
    match sampling.threshold:
        case StaticThreshold():
            return static_threshold(denoise)
        case DynamicThreshold(percentile=percentile, per=per):
            return dynamic_threshold(denoise, percentile, per)
    return denoise


def sample_stage(
    stage: Stage, sampling: Sampling, params: Any, keys: PRNGKeyArray, text: Conditioning,
    low: Float[Array, "b t h w 3"] | None = None,
) -> Float[Array, "b t h w 3"]:
    """Videos of one stage, in [-1, 1].

    Args:
      stage, sampling: static; `sampling` replaces the stage's own defaults.
      params: of the stage's network.
      keys: `[B]`, one per video.
      text: conditioning with the captions, which a stage that reads none leaves alone; also frame validity and
        reference features.
      low: the video of the stage before, for a stage with a source.
    """
    batch = keys.shape[0]
    conditioning = text
    if stage.network.text is None:
        conditioning = text.replace(tokens=None, embeddings=None, text_mask=None)
    if "fps" in stage.network.scalars:
        conditioning = conditioning.replace(scalars={"fps": jnp.full((batch,), stage.video.fps)})
    if stage.source is not None:
        level = jnp.full((batch,), stage.source.augmentation.sampling_logsnr)
        conditioning = with_low_resolution(conditioning, low, stage, keys, level)
    denoise = stage_denoiser(stage, params, conditioning, sampling)
    shape = (batch, *stage.video.shape)
    return jnp.clip(sample(sampling.sampler, denoise, keys, shape, stage.process, sampling.steps), -1, 1)


def with_overrides(sampling: Sampling, *, steps: int | None = None, guidance: float | None = None) -> Sampling:
    """The stage's sampling with what the user changed."""
    changes = {name: value for name, value in (("steps", steps), ("guidance", guidance)) if value is not None}
    return dataclasses.replace(sampling, **changes)
