"""The denoiser of a latent network, and one step of sampling with it as a program.

A program of one step serves any number of steps, any guidance and any prompt: a large network is compiled once per size
of video.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion.arrays import Denoiser, Level, Video
from vdm_jax.diffusion.consistency import consistent
from vdm_jax.diffusion.guidance import batched, combine
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Sampler, Step
from vdm_jax.diffusion.sampling import Carry, Walk
from vdm_jax.diffusion.thresholds import Threshold
from vdm_jax.parallel.rules import spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How a released model is sampled; what decides about the program."""

    sampler: Sampler
    process: Process
    consistency: float | None = None  # scaling of timesteps of a consistency model's estimate; None: no such model
    threshold: Threshold | None = None  # of every estimate of the clean latents


class Told(NamedTuple):
    """What the network is told of the noise: its own number for each level, between them interpolated."""

    levels: Float[Array, " N"]  # log-SNRs, increasing
    numbers: Float[Array, " N"]  # timesteps, or ln(sigma) / 4

    def __call__(self, logsnr: Level) -> Level:
        return jnp.interp(logsnr, self.levels, self.numbers)


class Given(NamedTuple):
    """What a network is given beside the noisy latents, of every video."""

    context: Float[Array, "B G L C"]  # tokens of the text or the image
    beside: Float[Array, "B T H W C"] | None = None  # latents joined to the noisy ones as further channels
    scalars: Float[Array, "B N"] | None = None


class Guided(NamedTuple):
    """What is asked for and what is not."""

    conditional: Given
    unconditional: Given | None = None  # None: no guidance
    weight: Float[Array, " ..."] | None = None  # w in (1 + w) form: a number, or per frame [T]


def latent_denoiser(module: nn.Module, params: Any, process: Process, told: Told, given: Guided) -> Denoiser:
    """`(z, logsnr) -> x_hat` of latents, guided where there is something to guide from; both estimates in one call."""

    def denoise_with(z: Video, logsnr: Level, given: Given) -> Video:
        def network(z: Video, logsnr: Level) -> Video:
            x = z if given.beside is None else jnp.concatenate([z, given.beside.astype(z.dtype)], axis=-1)
            # With guidance twice as many as there are videos: the devices that share the batch may divide it now.
            x, level, context, scalars = jax.tree.map(
                lambda x: spread(x, "batch", dim=0, must=False), (x, told(logsnr), given.context, given.scalars))
            return module.apply({"params": params}, x, level, context, **({} if scalars is None else {
                "scalars": scalars}))

        return process.denoiser(network)(z, logsnr)

    if given.unconditional is None:
        return lambda z, logsnr: denoise_with(z, logsnr, given.conditional)
    return combine(batched(denoise_with, [given.conditional, given.unconditional]), [(0, 1, given.weight)])


def with_estimates_of(method: Method, denoise: Denoiser) -> Denoiser:
    """The denoiser with its estimates bounded and made consistent, as the method has it."""
    if (threshold := method.threshold) is not None:
        inner = denoise

        def denoise(z: Video, logsnr: Level) -> Video:
            return threshold(inner(z, logsnr))

    if method.consistency is None:
        return denoise
    return consistent(denoise, method.process.schedule, scaling=method.consistency)


def step_program(module: nn.Module, method: Method) -> Callable[..., Carry]:
    """`(params, keys, given, told, carry, step) -> carry`: one step of all videos, to be jitted and called for each.

    `carry` is (z, memory of the sampler) as `Walk.begin` makes it; after a step with `last` z is the estimate.
    """

    def advance(params: Any, keys: Key[Array, " B"], given: Guided, told: Told, carry: Carry, step: Step) -> Carry:
        denoise = latent_denoiser(module, params, method.process, told, given)
        denoise = with_estimates_of(method, denoise)
        walk = Walk(method.sampler, method.process, carry[0].shape, step.count)
        return walk.advance(denoise, keys, carry, step)[0]

    return advance


def jit_step(module: nn.Module, method: Method, **options: Any) -> jax.stages.Wrapped:
    """`step_program` jitted; z and the sampler's memory are overwritten."""
    return jax.jit(step_program(module, method), donate_argnums=4, **options)
