"""The estimate of a latent consistency model, as a function from denoisers to denoisers.

Luo et al. 2023, arXiv 2310.04378, eq. 9: `c_skip(n) z + c_out(n) x_hat`, which is z itself at timestep 0. With the
published scaling of timesteps it is x_hat but for the last few.
"""

from __future__ import annotations

from vdm_jax.diffusion.arrays import Denoiser, Level, Video, expand
from vdm_jax.diffusion.beta_tables import BetaTable
from vdm_jax.errors import UserError


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
