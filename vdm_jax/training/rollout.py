"""Rollouts of a causal student in training: its sampler, block by block, with the gradient of one estimate of each
block (Self-Forcing: Huang et al. 2025, arXiv 2506.08009, algorithm 1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.sampling import Carry, Walk, steps_between
from vdm_jax.generation.block_sampling import block_denoiser, block_keys, over_blocks
from vdm_jax.generation.one_stage import with_threshold
from vdm_jax.networks.transformer.past import Past
from vdm_jax.stages.stage import Stage
from vdm_jax.training.draws import Drawn

# Of a draw's dropout key, beyond those of `distillation.py`.
_STEP_STREAM, _ROLLOUT_STREAM = 2**31 - 21, 2**31 - 22


def rolled_out(
    stage: Stage, params: Any, drawn: Drawn, levels: Float[Array, " steps"]
) -> Float[Array, "B T H W C"]:
    """Videos of a `SelfForcing` student under what the batch is conditioned on, each block the estimate at a random one
    of its steps, which begin at `levels`."""
    spec, shape = stage.training.distillation, drawn.x.shape
    blocks = shape[1] // stage.network.block_frames
    step_key, noise_key = (jax.random.fold_in(drawn.dropout_key, n) for n in (_STEP_STREAM, _ROLLOUT_STREAM))
    numbers = jax.random.randint(step_key, (1 if spec.same_step else blocks,), 0, len(levels))
    return rollout(stage, params, jax.random.split(noise_key, shape[0]), drawn.conditioning.replace(history=None),
                   levels, jnp.broadcast_to(numbers, (blocks,)), shape)


def rollout(
    stage: Stage, params: Any, keys: Key[Array, " B"], conditioning: Conditioning, levels: Float[Array, " steps"],
    numbers: Int[Array, " blocks"], shape: tuple[int, ...],
) -> Float[Array, "B T H W C"]:
    """Videos of `shape` (B, T, H, W, C), block by block as in sampling from these keys: a block goes the steps before
    its `numbers`-th one and ends on the estimate there, which is differentiable in `params`. Nothing else is: neither
    the steps before, nor the block as later ones see it, nor the keys and values that are kept of it.

    The result has no threshold, which would stop gradients; the steps before and what is kept have that of sampling.
    """
    sampling, batch, block = stage.sampling, shape[0], stage.network.block_frames
    fixed, steps = jax.lax.stop_gradient(params), steps_between(levels)
    walk = Walk(sampling.sampler, stage.process, (batch, block, *shape[2:]), len(levels), None, sampling.shared_noise)
    noise = noise_from_keys(keys, 0, shape, sampling.shared_noise)

    def make(past: Past, number: Int[Array, ""], parts: list[Conditioning]) -> tuple[Array, Array]:
        own, last = block_keys(keys, number), numbers[number]
        begin = jax.lax.dynamic_slice_in_dim(noise, number * block, block, axis=1)
        denoise = with_threshold(block_denoiser(stage, sampling, fixed, parts, past), sampling)

        def advanced(index: Int[Array, ""], carry: Carry) -> Carry:
            return walk.advance(denoise, own, carry, jax.tree.map(lambda a: a[index], steps))[0]

        z, _ = jax.lax.fori_loop(0, last, advanced, walk.begin(own, levels[0], noise=begin))
        z, level = jax.lax.stop_gradient(z), jnp.broadcast_to(levels[last], batch)
        x = block_denoiser(stage, sampling, params, parts, past)(z, level)
        return x, jax.lax.stop_gradient(with_threshold(lambda *_: x, sampling)(z, level))

    return over_blocks(stage, fixed, [conditioning], shape, make)
