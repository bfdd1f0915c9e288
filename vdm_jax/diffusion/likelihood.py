"""The density that a trained process gives to videos, by its probability-flow ODE."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.configuration import Count, check_value
from vdm_jax.diffusion.arrays import Denoiser, Video
from vdm_jax.diffusion.process import Process

BIN = 2 / 255  # width of one of 256 values in [-1, 1]
WIDEST = 20.0  # log-SNR of the first and last level of a schedule without ends


def log_density(
    process: Process, denoise: Denoiser, x: Video, key: Key[Array, ""], *, steps: int = 64, probes: int = 1
) -> Float[Array, " B"]:
    """Natural logarithm of the density of each video at the cleanest level of the schedule, `[B]`.

    The probability-flow ODE (Song et al. 2021, arXiv 2011.13456, section 4.3) is solved from there to the noisiest
    level, by Heun's method in equal steps of `s = ln(sigma / alpha)`. For `u = z / sqrt(alpha^2 + sigma^2)`, whose
    variance is about one at all levels, and `w = 1 + exp(2 s)` it reads `du/ds = u / w - x_hat / sqrt(w)`. The density
    changes by the divergence of that, which random signs estimate (Skilling-Hutchinson, ibid. appendix D.2). At the
    noisiest level `u` is standard normal.

    Args:
      denoise: `(z, logsnr) -> x_hat`, with parameters and conditioning bound; it must not mix examples.
      x: `[B, T, H, W, C]` in [-1, 1], dequantised (`dequantised`).
      key: of the signs.
      steps: of the solver; each calls the denoiser twice.
      probes: random sign vectors whose estimates are averaged.

    Raises `UserError` for fewer than one step or probe.
    """
    check_value(steps, Count, "steps")
    check_value(probes, Count, "probes")
    noisiest, cleanest = (min(max(level, -WIDEST), WIDEST) for level in process.schedule.logsnr_range)
    nodes = jnp.linspace(-cleanest / 2, -noisiest / 2, steps + 1)
    signs = jax.random.rademacher(key, (probes, *x.shape), jnp.float32)
    batch, axes = len(x), tuple(range(1, x.ndim))

    def slope(u: Video, s: Array) -> tuple[Video, Float[Array, " B"]]:
        logsnr, root = jnp.full((batch,), -2 * s), jnp.sqrt(1 + jnp.exp(2 * s))
        alpha = process.schedule.alpha_sigma(-2 * s)[0]

        def field(u: Video) -> Video:
            return u / root**2 - denoise(alpha * root * u, logsnr) / root

        value, pull = jax.vjp(field, u)  # backwards, as attention kernels have no forward mode
        return value, jnp.mean(jax.lax.map(lambda v: (v * pull(v)[0]).sum(axes), signs), axis=0)

    def step(carry: tuple[Video, Array], ends: tuple[Array, Array]) -> tuple[tuple[Video, Array], None]:
        (u, total), (s, end) = carry, ends
        first, divergence = slope(u, s)
        second, divergence_end = slope(u + (end - s) * first, end)
        u = u + (end - s) * (first + second) / 2
        return (u, total + (end - s) * (divergence + divergence_end) / 2), None

    grown = 1 + math.exp(-cleanest)  # w at the cleanest level, where u = x / sqrt(w)
    (u, total), _ = jax.lax.scan(step, (x / math.sqrt(grown), jnp.zeros(batch)), (nodes[:-1], nodes[1:]))
    size = math.prod(x.shape[1:])
    return total - (u**2).sum(axes) / 2 - size / 2 * math.log(2 * math.pi * grown)


def dequantised(x: Video, key: Key[Array, ""]) -> Video:
    """Videos in [-1, 1], rounded to 256 values, plus noise that is uniform over the width of one (Theis et al. 2016,
    arXiv 1511.01844, section 3.1)."""
    return jnp.round((x + 1) / BIN) * BIN - 1 + BIN * (jax.random.uniform(key, x.shape) - 0.5)


def bits_per_dim(log_density: Float[Array, " B"], size: int) -> Float[Array, " B"]:
    """An upper bound of the bits per value of 256, from the density of dequantised videos of `size` values."""
    return -log_density / (size * math.log(2)) - math.log2(BIN)
