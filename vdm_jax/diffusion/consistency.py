"""Estimates of consistency models, as functions from denoisers to denoisers: what was trained is consistent only with
the condition that holds at the lowest noise.

Of latent consistency models (Luo et al. 2023, arXiv 2310.04378, eq. 9): `c_skip(n) z + c_out(n) x_hat`, which is z
itself at timestep 0. With the published scaling of timesteps it is x_hat but for the last few.

Of others (Song et al. 2023, arXiv 2303.01469, appendix C), in `x = z / alpha` and `t = sigma / alpha`, whose lowest
value is eps: `c_skip(t) x + c_out(t) F` with the network F of EDM, whose `c_skip` and `c_out` are changed so that the
estimate is x itself at eps. Of any network, whose x_hat implies F, that is

    x_hat (t - eps) / t + (sd^2 / ((t - eps)^2 + sd^2) - sd^2 / (t^2 + sd^2) (t - eps) / t) x
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from vdm_jax.configuration import Positive, config
from vdm_jax.diffusion.arrays import Denoiser, Level, Video, expand
from vdm_jax.diffusion.beta_tables import BetaTable
from vdm_jax.diffusion.schedules import Schedule
from vdm_jax.errors import UserError


@config
class Boundary:
    """The condition of Song et al. 2023 at the schedule's lowest noise."""

    sigma_data: Positive = 0.5  # standard deviation of the data


def consistent_estimate(denoise: Denoiser, schedule: Schedule, condition: float | Boundary) -> Denoiser:
    """The consistency model of a denoiser: `condition` is the scaling of timesteps of a latent one, or a `Boundary`."""
    if isinstance(condition, Boundary):
        return bounded(denoise, schedule, sigma_data=condition.sigma_data)
    return consistent(denoise, schedule, scaling=condition)


def bounded(denoise: Denoiser, schedule: Schedule, *, sigma_data: float = 0.5) -> Denoiser:
    """The denoiser with the condition of Song et al. 2023: at the log-SNR of time 0 it is `z / alpha`."""
    least = math.exp(-schedule.logsnr_range[1] / 2)

    def denoise_bounded(z: Video, logsnr: Level) -> Video:
        alpha, _ = schedule.alpha_sigma(logsnr)
        ratio = jnp.exp(-jnp.asarray(logsnr) / 2)
        power, above = sigma_data**2, jnp.maximum(ratio - least, 0)
        share = above / ratio
        skip = power / (above**2 + power) - power / (ratio**2 + power) * share
        return expand(share, z) * denoise(z, logsnr) + expand(skip / alpha, z) * z

    return denoise_bounded


def consistent(
    denoise: Denoiser, schedule: BetaTable, *, scaling: float = 10.0, sigma_data: float = 0.5
) -> Denoiser:
    """The denoiser with `c_skip = sd^2 / (s^2 + sd^2)` and `c_out = s / sqrt(s^2 + sd^2)`.

    s is the timestep times `scaling`, sd is `sigma_data`.

    Raises `UserError` for a schedule without timesteps.
    """
    if not isinstance(schedule, BetaTable):
        raise UserError(f"consistent with {type(schedule).__name__}; permitted: a schedule of "
                        "betas, such as LinearBetaSchedule")

    def denoise_consistently(z: Video, logsnr: Level) -> Video:
        scaled = scaling * schedule.timestep(logsnr)
        power = scaled**2 + sigma_data**2
        return expand(sigma_data**2 / power, z) * z + expand(scaled / power**0.5, z) * denoise(z, logsnr)

    return denoise_consistently
