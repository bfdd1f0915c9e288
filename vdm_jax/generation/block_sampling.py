"""Videos block by block by a causal network, which keeps keys and values of finished blocks: one scan over blocks.

Every block is denoised from noise in all of the sampler's steps, in each of which its frames attend to themselves and
to what is kept; one more call, of the finished block, writes what the next ones see (Self-Forcing: Huang et al. 2025,
arXiv 2506.08009, algorithm 2). What is computed for a frame does not grow with those before it, but for its attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.diffusion.arrays import Denoiser, noise_from_keys
from vdm_jax.diffusion.guidance import batched, combine
from vdm_jax.diffusion.sampling import Walk, steps_between
from vdm_jax.diffusion.scheduler_steps import Discretisation
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.transformer.levels import CLEAN
from vdm_jax.networks.transformer.past import Past, empty, following
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage

_BLOCK_STREAM = 2**30  # of a sample's key: a block's own key is folded in beyond those of steps
# What is kept, number and conditionings of a block -> the block, and what of it is kept
MakeBlock = Callable[[Past, Int[Array, ""], list[Conditioning]], tuple[Float[Array, "B T2 H W C"], Array]]


def sample_by_blocks(
    stage: Stage, sampling: Sampling, params: Any, keys: Key[Array, " B"], conditionings: list[Conditioning],
    levels: Float[ArrayLike, " steps"], discretisation: Discretisation | None = None, *, embedded: Any = None,
    finish: Any = lambda denoise: denoise,
) -> Float[Array, "B T H W C"]:
    """What `diffusion.sampling.sample` makes of a stage, block by block.

    Args:
      stage, sampling, params, keys, levels, discretisation: as there; `levels` are those of the sampler's grid.
      conditionings: that of the videos and, where they are guided, that of the unconditional estimate.
      embedded: log-SNRs, and those that the network embeds there, of a released scheduler.
      finish: a function from denoisers to denoisers that acts last, such as a threshold.
    """
    block = stage.network.block_frames
    (_, *sides), batch = stage.shape, keys.shape[0]
    walk = Walk(sampling.sampler, stage.process, (batch, block, *sides), sampling.steps, None, sampling.shared_noise)
    steps, std = steps_between(levels), None
    if discretisation is not None:
        steps, std = jax.tree.map(jnp.asarray, discretisation.steps), discretisation.initial_std
    noise = noise_from_keys(keys, 0, (batch, *stage.shape), sampling.shared_noise)

    def make(past: Past, number: Int[Array, ""], parts: list[Conditioning]) -> tuple[Array, Array]:
        own, begin = block_keys(keys, number), jax.lax.dynamic_slice_in_dim(noise, number * block, block, axis=1)
        denoise = finish(block_denoiser(stage, sampling, params, parts, past, embedded))
        carry = walk.begin(own, steps.level[0], noise=begin, std=std)
        (x, _), _ = jax.lax.scan(lambda carry, step: (walk.advance(denoise, own, carry, step)[0], None), carry, steps)
        return x, x

    return over_blocks(stage, params, conditionings, (batch, *stage.shape), make)


def over_blocks(
    stage: Stage, params: Any, conditionings: list[Conditioning], shape: tuple[int, ...], make: MakeBlock
) -> Float[Array, "B T H W C"]:
    """Videos of a shape `(B, T, H, W, C)`, one block after the other.

    Args:
      stage: of a network that is causal in blocks which divide the frames.
      params: of the calls that write keys and values of what is kept, as of a clip without noise.
      conditionings: of the videos, one for each estimate that `make` combines.
      make: a block, from noise or however.
    """
    network, process, block = stage.network, stage.process, stage.network.block_frames
    batch, frames, module = *shape[:2], network_module(stage.network)

    def body(past: Past, number: Int[Array, ""]) -> tuple[Past, Float[Array, "B T2 H W C"]]:
        parts = [conditioning.window(number * block, block, frames) for conditioning in conditionings]
        x, finished = make(past, number, parts)
        left: dict[str, Any] = {}

        def write(x: Array, logsnr: Array, conditioning: Conditioning) -> Array:
            y, left["state"] = module.apply({"params": params}, process.network_input(x, logsnr), logsnr, conditioning,
                                            past=past, mutable=["kept"])
            return y

        batched(write, parts)(finished, jnp.full(batch, CLEAN))
        return following(network, past, left["state"]), x

    begin = empty(network, batch * len(conditionings), shape[1:4])
    _, blocks = jax.lax.scan(body, begin, jnp.arange(frames // block))
    return jnp.moveaxis(blocks, 0, 1).reshape(shape)


def block_keys(keys: Key[Array, " B"], number: Int[Array, ""]) -> Key[Array, " B"]:
    """Keys of the noise that a block's steps draw."""
    return jax.vmap(lambda key: jax.random.fold_in(key, _BLOCK_STREAM + number))(keys)


def block_denoiser(
    stage: Stage, sampling: Sampling, params: Any, conditionings: list[Conditioning], past: Past, embedded: Any = None
) -> Denoiser:
    """The estimate of the next block, guided where there are two conditionings."""
    module = network_module(stage.network)

    def denoise_with(z: Array, logsnr: Array, conditioning: Conditioning) -> Array:
        def network(x: Array, level: Array) -> Array:
            level = level if embedded is None else jnp.interp(level, *embedded)
            return module.apply({"params": params}, x, level, conditioning, past=past)

        return stage.process.denoiser(network)(z, logsnr)

    if len(conditionings) == 1:
        return lambda z, logsnr: denoise_with(z, logsnr, conditionings[0])
    return combine(batched(denoise_with, conditionings), [(0, 1, sampling.guidance)])
