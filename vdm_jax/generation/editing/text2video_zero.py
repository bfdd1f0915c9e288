"""Text2Video-Zero: videos by an image model without training (Khachatryan et al. 2023, arXiv 2303.13439).

Every spatial self-attention sees the first frame alone, so that all frames show its objects. As a method of editing,
for networks with a ControlNet, the maps of the given video say how it moves, and all frames begin with one noise. From
a text alone (`text_to_video`) frames move by a motion field instead: the first frame is sampled to step t0, shifted by
so much per frame, noised to the earlier step t1, and sampled from there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdm_jax.attention import SparseCausal
from vdm_jax.configuration import Range, Share, config
from vdm_jax.diffusion.arrays import Denoiser, Video, noise_from_keys
from vdm_jax.diffusion.families import Family
from vdm_jax.diffusion.inversion import sampled_from, steps_from
from vdm_jax.diffusion.sampling import steps_between
from vdm_jax.diffusion.steps import Scalar, Step
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.ddim_inversion import deterministic
from vdm_jax.generation.editing.parts import EditParts, EditsStage, from_one_noise
from vdm_jax.generation.editing.patterns import with_spatial_pattern
from vdm_jax.generation.generator import Generated, Generator
from vdm_jax.generation.jobs import Jobs, Progress
from vdm_jax.generation.one_stage import (
    finished,
    precomputed,
    released_steps,
    sampling_parts,
    stage_denoiser,
    stage_levels,
)
from vdm_jax.generation.overrides import one_guidance, with_overrides
from vdm_jax.generation.prompts import requested_conditioning
from vdm_jax.generation.stage_conditioning import stage_conditioning
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage
from vdm_jax.video.arrays import check_finite, to_uint8

FIRST_FRAME = SparseCausal(first=True, previous=False, own=False)
FIELD = 512  # pixels of a side in which a motion field is given
Pixels = Annotated[float, Range(least=-FIELD, most=FIELD)]


@config
class Text2VideoZero(EditsStage):
    """First-frame attention in the network, one noise for all frames, deterministic DDIM. A clip begins with the first
    frame of the video, so that every clip sees it: frames do not depend on how they are cut into clips."""

    name: ClassVar[str] = "text2video_zero"
    inverts: ClassVar[bool] = False
    carries_first: ClassVar[bool] = True

    strength: Share = 1.0  # share of the steps that are made; 1: from noise, without the pixels of the given video

    def stage(self, stage: Stage) -> Stage:
        """The stage whose frames see the first one. Raises `UserError` as `with_spatial_pattern`."""
        return with_spatial_pattern(stage, FIRST_FRAME)

    def sampling(self, sampling: Sampling) -> Sampling:
        """How a stage is sampled: by deterministic DDIM, all frames from the same noise."""
        return dataclasses.replace(deterministic(sampling), shared_noise=True)

    def edit(self, x: Video, parts: EditParts) -> Video:
        """The edited video, or latents."""
        steps, process = steps_from(parts.steps, self.strength), parts.process
        if not len(steps.level):
            return x
        z = from_one_noise(x, parts, steps, self.strength)
        return sampled_from(z, parts.sampler, parts.target, parts.keys, steps, process, True)


def text_to_video(
    generator: Generator, captions: Sequence[str] | str, *, frames: int = 8, motion: tuple[Pixels, Pixels] = (12, 12),
    t0: int = 44, t1: int = 47, chunk: int | None = None, steps: int | None = None, guidance: float | None = None,
    guidance_scale: float | None = None, negative: Sequence[str] | str | None = None, seed: int = 0,
    noise: Float[np.ndarray, "B 1 H W C"] | None = None, progress: Progress | None = None, **given: Any,
) -> Generated:
    """Videos of texts by a released image model.

    Args:
      frames: of the videos.
      motion: how far what is seen moves from frame to frame, to the left and up, pixels of a frame of 512.
      t0, t1: numbers of steps before the last one at which frames are shifted, and to which they are noised.
      chunk: frames that are sampled together, the first one among them; all by default. It changes nothing but memory.
      steps, guidance, guidance_scale, negative, seed, given: as in a call of the generator.
      noise: that the first frame begins with, instead of what the seed draws.
      progress: called with (stage, frames done, frames in all).

    Raises `UserError` for a model of videos, t0 and t1 that are no steps in this order, fewer than two frames or frames
    in a chunk, and as a call.
    """
    stage, = generator.stages()
    weight = one_guidance(guidance, guidance_scale, None)
    sampling = deterministic(with_overrides(stage.sampling, steps=steps, guidance=weight))
    chunk = frames if chunk is None else chunk
    if not 0 <= t0 < t1 < sampling.steps:
        raise UserError(f"t0={t0} with t1={t1}; permitted: 0 <= t0 < t1 < {sampling.steps}, the steps")
    if frames < 2 or not 2 <= chunk <= frames:
        raise UserError(f"frames={frames} with chunk={chunk}; permitted: 2 frames or more, in chunks of 2 to {frames}")
    generator.check_trained((stage,))
    request = generator.request(captions, given, (stage,), negative)
    parts, batch = sampling_parts(stage, sampling, generator.mesh), len(request.captions)
    rows = np.minimum(np.arange(-(-batch // parts) * parts), batch - 1)  # devices have equal shares
    text = jax.tree.map(lambda x: x[rows], requested_conditioning(stage, request))
    keys, noise = Jobs(seed, np.arange(batch)).keys(rows, 0), None if noise is None else noise[rows]
    one, several = (with_spatial_pattern(_of_frames(stage, count), FIRST_FRAME) for count in (1, chunk))
    make = functools.partial(_make, generator, sampling)
    ends = (t0, t1)
    begin, go_on = make(one, "begin", ends), make(several, "go on", ends)
    at_t1, at_t0 = begin(keys, text, noise)
    done = []
    for start in range(1, frames, chunk - 1):
        numbers = np.arange(start, start + chunk - 1)
        clip = np.asarray(go_on(keys, text, at_t1, at_t0, jnp.asarray(numbers), _shifts(at_t0, numbers, motion)))
        check_finite(clip, f"stage {stage.name!r}, videos")
        done.append(clip[:, (0 if start == 1 else 1):])
        if progress is not None:
            progress(stage.name, min(start + chunk - 1, frames), frames)
    videos = np.asarray(to_uint8(np.concatenate(done, axis=1)[:batch, :frames]))
    return Generated(request.captions, {stage.name: videos}, {stage.name: stage.video.fps})


def _of_frames(stage: Stage, frames: int) -> Stage:
    return dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=frames))


def _make(generator: Generator, sampling: Sampling, stage: Stage, what: str, ends: tuple[int, int]) -> Any:
    """A compiled function of a stage with the generator's parameters."""
    function = generator.kept((stage, sampling, what, ends), jax.jit, functools.partial(
        _begin if what == "begin" else _go_on, stage, sampling, *ends))
    params, autoencoder = generator.params[stage.name], generator.autoencoders.get(stage.name)

    def call(*arguments: Any) -> Any:
        with jax.set_mesh(generator.mesh):
            return function(params, autoencoder, *arguments)

    return call


def _denoiser(stage: Stage, sampling: Sampling, params: Any, keys: Array, text: Any) -> tuple[Denoiser, Step, float]:
    """The denoiser, the steps and the standard deviation of the noise that they begin with."""
    levels, (released, embedded) = stage_levels(stage, sampling), released_steps(stage, sampling)
    conditioning, _ = stage_conditioning(stage, sampling, keys, text, None, None)
    conditioning = precomputed(stage, sampling, params, conditioning)
    denoise = stage_denoiser(stage, params, conditioning, sampling, levels, embedded=embedded)
    steps = released.steps if released is not None else steps_between(levels)
    return denoise, jax.tree.map(jnp.asarray, steps), 1.0 if released is None else float(released.initial_std)


def _begin(
    stage: Stage, sampling: Sampling, t0: int, t1: int, params: Any, autoencoder: Any, keys: Array, text: Any,
    noise: Float[Array, "B 1 H W C"] | None,
) -> tuple[Float[Array, "B 1 H W C"], Float[Array, "B 1 H W C"]]:
    """The first frame at the steps t1 and t0 before the last."""
    denoise, steps, std = _denoiser(stage, sampling, params, keys, text)
    shape, count = (len(keys), *stage.shape), len(steps.level)
    z = std * (noise_from_keys(keys, 0, shape) if noise is None else noise)
    middle, late = count - t1 - 1, count - t0 - 1

    def between(z: Video, first: int, last: int) -> Video:
        part = jax.tree.map(lambda x: x[first:last], steps)
        return z if first == last else sampled_from(z, sampling.sampler, denoise, keys, part, stage.process)

    at_t1 = between(z, 0, middle)
    return at_t1, between(at_t1, middle, late)


def _go_on(
    stage: Stage, sampling: Sampling, t0: int, t1: int, params: Any, autoencoder: Any, keys: Array, text: Any,
    at_t1: Float[Array, "B 1 H W C"], at_t0: Float[Array, "B 1 H W C"], numbers: Int[Array, " N"],
    shifts: tuple[Int[Array, "N H"], Int[Array, "N W"]],
) -> Float[Array, "B T H2 W2 3"]:
    """A clip of the first frame and further ones of these numbers, from step t1 before the last to its end."""
    denoise, steps, _ = _denoiser(stage, sampling, params, keys, text)
    count, family = len(steps.level), stage.process.schedule.family
    kept, std = _renoised(family, *(steps.level[count - t - 1] for t in (t0, t1)))
    moved = jax.vmap(lambda rows, columns: at_t0[:, 0, rows][:, :, columns], out_axes=1)(*shifts)
    drawn = jax.vmap(lambda number: noise_from_keys(keys, number, (len(keys), *at_t0.shape[2:])), out_axes=1)(numbers)
    z = jnp.concatenate([at_t1, kept * moved + std * drawn], axis=1)
    part = jax.tree.map(lambda x: x[count - t1 - 1:], steps)
    x = sampled_from(z, sampling.sampler, denoise, keys, part, stage.process)
    return finished(stage, x, None, None, autoencoder)


def _renoised(family: Family, level: Scalar, noisier: Scalar) -> tuple[Scalar, Scalar]:
    """Factor on z and standard deviation of the noise on top with which z goes from level s to a noisier t, of any
    family: alpha_t / alpha_s and sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)."""
    alpha, sigma = family.alpha_sigma(noisier)
    return alpha / family.alpha_sigma(level)[0], sigma * jnp.sqrt(-jnp.expm1(noisier - level))


def _shifts(
    z: Float[Array, "B 1 H W C"], numbers: Int[np.ndarray, " N"], motion: tuple[float, float]
) -> tuple[Int[np.ndarray, "N H"], Int[np.ndarray, "N W"]]:
    """The row and the column of the first frame that each one of a shifted frame shows: nearest ones, reflected at the
    borders, as `grid_sample` of PyTorch takes them for a motion field of 512 pixels a side."""
    found = []
    for size, pixels in ((z.shape[2], motion[1]), (z.shape[3], motion[0])):
        at = np.arange(size) + (pixels * numbers[:, None] - 0.5) * size / FIELD
        turns, rest = np.divmod(np.abs(at + 0.5), size)
        at = np.where(turns % 2 == 0, rest, size - rest) - 0.5
        found.append(np.rint(np.clip(at, 0, size - 1)).astype(np.int32))
    return tuple(found)
