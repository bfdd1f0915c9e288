"""Null-text optimisation: an inversion for sampling with guidance (Mokady et al. 2022, arXiv 2211.09794, algorithm 1).

Guidance leads DDIM away from the trajectory that plain inversion found. At every step the embedding of the null caption
is changed until the guided step leads to that trajectory's next point. With these embeddings, one for each step, the
caption of the video makes the video again, and another caption edits it. Pure functions, as those of `inversion.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vdm_jax.configuration import Count, Positive, check_value
from vdm_jax.diffusion.arrays import Level, Video
from vdm_jax.diffusion.families import Family
from vdm_jax.diffusion.inversion import Trajectory
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.steps import Step

Null = Float[Array, "B L C"]  # embeddings of the null caption
Nulls = Float[Array, "steps B L C"]
NullDenoiser = Callable[[Video, Level, Null], Video]  # (z, log-SNR, null embeddings) -> guided x_hat


def null_text_optimised(
    denoise: NullDenoiser, null: Null, trajectory: Trajectory, x: Video, steps: Step, family: Family, *,
    iterations: int = 10, learning_rate: float = 0.01, sampler: DDIM = DDIM(),  # noqa: B008 (a frozen config)
) -> Nulls:
    """The null embeddings of each step with which deterministic DDIM, guided, goes along a trajectory to x.

    Each step begins at the z that the steps before lead to, and with the embeddings of the step before, and minimises
    the mean squared distance of its result to the trajectory by Adam. A video's embeddings do not depend on what else
    is in the batch.

    Args:
      denoise: with guidance and with the caption of the video.
      null: the embeddings to begin with, those of the null caption.
      trajectory: z at each of the steps, of `ddim_inverted` without guidance.
      iterations: Adam's steps at each step of the sampler; published: 10.
      learning_rate: Adam's, of every step. That of the authors' code falls from 0.01 at the first of 50 steps to 0.005,
        and it stops early where the distance is small.
      sampler: deterministic, with its threshold if it has one.

    Raises `UserError` for fewer than one iteration, and a learning rate that is not above 0.
    """
    check_value(iterations, Count, "iterations")
    check_value(learning_rate, Positive, "learning_rate")
    steps, optimiser = jax.tree.map(jnp.asarray, steps), optax.adam(learning_rate)

    def advance(carry: tuple[Video, Null], given: tuple[Step, Video]) -> tuple[tuple[Video, Null], Null]:
        (z, null), (step, target) = carry, given

        def distance(null: Null) -> tuple[Float[Array, ""], Video]:
            z_s = _guided_step(denoise, z, null, step, len(trajectory), family, sampler)
            errors = jnp.mean((z_s - target) ** 2, axis=tuple(range(1, z.ndim)))
            return errors.sum(), z_s  # of videos that do not share embeddings: each has its own gradient

        def improve(_: int, state: tuple[Null, optax.OptState]) -> tuple[Null, optax.OptState]:
            null, memory = state
            gradient, _ = jax.grad(distance, has_aux=True)(null)
            change, memory = optimiser.update(gradient, memory)
            return optax.apply_updates(null, change), memory

        null, _ = jax.lax.fori_loop(0, iterations, improve, (null, optimiser.init(null)))
        return (distance(null)[1], null), null

    targets = jnp.concatenate([trajectory[1:], x[None].astype(jnp.float32)])
    return jax.lax.scan(advance, (trajectory[0], null), (steps, targets))[1]


def sampled_with_nulls(
    denoise: NullDenoiser, z: Video, nulls: Nulls, steps: Step, family: Family, *,
    sampler: DDIM = DDIM(),  # noqa: B008
) -> Video:
    """What deterministic DDIM makes of z at the first of the steps with the null embeddings of each."""

    def advance(z: Video, given: tuple[Step, Null]) -> tuple[Video, None]:
        step, null = given
        return _guided_step(denoise, z, null, step, len(nulls), family, sampler), None

    return jax.lax.scan(advance, z, (jax.tree.map(jnp.asarray, steps), nulls))[0]


def _guided_step(
    denoise: NullDenoiser, z: Video, null: Null, step: Step, count: int, family: Family, sampler: DDIM
) -> Video:
    """z at the step's next level, or after the last step the estimate."""

    def estimate(z: Video, level: Level) -> Video:
        return denoise(z, jnp.broadcast_to(level, z.shape[:1]), null)

    z_s, x_hat, _ = sampler.step(estimate, z, None, step._replace(count=count), family, jnp.zeros_like(z))
    return jnp.where(step.last, x_hat, z_s)
