"""What the losses of few-step students are made of, as pure functions: targets, distances and schedules."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from vdm_jax.configuration import Positive, config
from vdm_jax.diffusion.arrays import Denoiser, Level, Video, expand
from vdm_jax.diffusion.beta_tables import BetaTable
from vdm_jax.diffusion.families import Family
from vdm_jax.diffusion.process import masked_mean
from vdm_jax.diffusion.samplers import DDIM, Heun
from vdm_jax.diffusion.schedules import Schedule
from vdm_jax.diffusion.steps import Step

Solver = DDIM | Heun


def solved(solver: Solver, denoise: Denoiser, z: Video, level: Level, following: Level, family: Family) -> Video:
    """z carried from one log-SNR [B] to another by one deterministic step of a solver."""
    def estimate(z: Video, at: Array) -> Video:
        return denoise(z, at.reshape(-1))

    level, following = expand(level, z), expand(following, z)
    step = Step(jnp.array(0), level - 1, level, following, jnp.array(False), 1)
    return solver.step(estimate, z, solver.memory(z), step, family, jnp.zeros_like(z))[0]


def halving_target(
    denoise: Denoiser, z: Video, levels: tuple[Level, Level, Level], final: Array, family: Family
) -> Video:
    """The estimate with which one step of DDIM ends where two steps with `denoise` do (Salimans & Ho 2022, arXiv
    2202.00512, appendix G).

    With x_1 and x_2 the estimates of the two steps, of lengths h_1 and h_2 in log-SNR, the published quotient is

        x_2 + e^(-h_2 / 2) (1 - e^(-h_1 / 2)) / (1 - e^(-(h_1 + h_2) / 2)) (x_1 - x_2)

    for every family: a mean of the two, whose quotient has no small differences of alpha and sigma.

    Args:
      denoise: the teacher.
      z: noisy videos.
      levels: log-SNRs [B] of z, of the end of the first step and of that of the second one.
      final: [B], where the second step ends on its estimate, as sampling does: the target is x_2.
      family: of the schedule.
    """
    level, middle, end = levels
    first = denoise(z, level)
    second = denoise(solved(DDIM(), lambda *_: first, z, level, middle, family), middle)
    share = jnp.exp((middle - end) / 2) * jnp.expm1((level - middle) / 2) / jnp.expm1((level - end) / 2)
    return second + expand(jnp.where(final, 0.0, share), z) * (first - second)


def matching_error(
    x: Video, real: Video, fake: Video, mask: Float[Array, "..."] | None = None
) -> Float[Array, " B"]:
    """An error of each video whose gradient is the difference of two scores at a noisy version of it: descending it
    reduces the KL divergence of the videos' distribution from the teacher's (Yin et al. 2023, arXiv 2311.18828, eq. 7
    and 8).

    With estimates of the clean video the difference of the scores is `alpha / sigma^2 (real - fake)`. As published, the
    gradient with respect to x is `(fake - real) / mean |x - real|`, divided by the number of values.

    Args:
      x: videos of a student.
      real: the teacher's estimate of them, where noise was added.
      fake: that of a network that has learnt the student's videos.
      mask: 1 where the error counts.
    """
    size = masked_mean(jnp.abs(x - real), mask)
    direction = (fake - real) / expand(jnp.maximum(size, 1e-6), x)
    return masked_mean(jnp.square(x - jax.lax.stop_gradient(x - direction)), mask) / 2


def interval_level(schedule: Schedule, number: Int[ArrayLike, " B"], count: Int[ArrayLike, ""]) -> Level:
    """Log-SNR of the `number`-th end of `count` intervals of equal time, 0 the cleanest; of a table of betas at whole
    timesteps `T / count number - 1` (Luo et al. 2023, arXiv 2310.04378, section 4.3), where 0 is timestep 0."""
    share = jnp.asarray(number) / count
    if isinstance(schedule, BetaTable):
        return schedule.logsnr_at(jnp.maximum(jnp.round(schedule.steps * share) - 1, 0))
    return schedule.logsnr(share)


@config
class SquaredDistance:
    """Mean squared difference."""

    def __call__(self, difference: Video, mask: Float[Array, "..."] | None = None) -> Float[Array, " B"]:
        """Of each example, where `mask` is 1."""
        return masked_mean(jnp.square(difference), mask)


@config
class PseudoHuber:
    """`sqrt(r^2 + c^2) - c`: squared for small differences, absolute for large ones.

    Of all D values of an example together r is their Euclidean norm, and c by default 0.00054 sqrt(D) (Song & Dhariwal
    2023, arXiv 2310.14189, section 3.3). Of single values, averaged, c is 0.001 in the code of latent consistency
    models.
    """

    over: Literal["example", "value"] = "example"
    c: Positive | None = None  # None: the published one

    def __call__(self, difference: Video, mask: Float[Array, "..."] | None = None) -> Float[Array, " B"]:
        """Of each example, where `mask` is 1."""
        if self.over == "value":
            c = 0.001 if self.c is None else self.c
            return masked_mean(jnp.sqrt(jnp.square(difference) + c**2) - c, mask)
        size = math.prod(difference.shape[1:])
        c = 0.00054 * math.sqrt(size) if self.c is None else self.c
        return jnp.sqrt(size * masked_mean(jnp.square(difference), mask) + c**2) - c


@config
class Perceptual:
    """LPIPS of frames, averaged (Song et al. 2023, arXiv 2303.01469, section 5), for RGB pixels.
    `training/perceptual.py` has its weights."""

    backbone: Literal["alexnet", "vgg16"] = "vgg16"

    @property
    def least_side(self) -> int:
        """Pixels of a side that it can see."""
        return {"alexnet": 31, "vgg16": 16}[self.backbone]


Distance = SquaredDistance | PseudoHuber | Perceptual


def growing_intervals(
    step: Int[ArrayLike, ""], steps: int, first: int, last: int, growth: Literal["root", "doubling"]
) -> Int[Array, ""]:
    """Intervals of consistency training at a step.

    `root`: `ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1)` (Song et al. 2023, arXiv 2303.01469, appendix C, whose
    N has one more: the ends of the intervals). `doubling`: `min(s_0 2^floor(k / K'), s_1)` with as many steps between
    doublings (Song & Dhariwal 2023, arXiv 2310.14189, section 3.4).
    """
    if growth == "root":
        share = jnp.asarray(step, jnp.float32) / steps
        found = jnp.ceil(jnp.sqrt(share * ((last + 1) ** 2 - first**2) + first**2) - 1)
        return jnp.clip(found, 1, last).astype(jnp.int32)
    between = max(steps // (int(math.log2(last / first)) + 1), 1)
    doublings = jnp.minimum(jnp.asarray(step) // between, 30 - int(math.log2(first)))
    return jnp.minimum(first * 2**doublings, last).astype(jnp.int32)


def target_decay(intervals: Int[ArrayLike, ""], first: int, decay: float) -> Float[Array, ""]:
    """Decay of the target's moving average: `exp(s_0 log mu_0 / N)`, N one more than the intervals (Song et al. 2023,
    arXiv 2303.01469, appendix C); 0 stays 0."""
    if decay == 0:
        return jnp.float32(0)
    return jnp.exp(first * math.log(decay) / (jnp.asarray(intervals, jnp.float32) + 1))
