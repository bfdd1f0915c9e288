"""Conversions between the things a network can predict; every formula of that kind lives here, once.

With `z = alpha x + sigma eps` and `rho = sigma / alpha`:

    x      the clean video
    eps    the noise
    v      alpha eps - sigma x
    flow   eps - x
    score  -eps / sigma, the gradient of log q(z | x)
    edm    F with x = c_skip z / alpha + c_out F, and c_in z / alpha as the network's input, where
           c_skip = sd^2 / (rho^2 + sd^2), c_out = rho sd / sqrt(rho^2 + sd^2), c_in = 1 / sqrt(rho^2 + sd^2)

Sources: v, Salimans & Ho 2022, arXiv 2202.00512, section 4; flow, Liu et al. 2022, arXiv 2209.03003, with the
sign of Esser et al. 2024, arXiv 2403.03206; score, Song et al. 2021, arXiv 2011.13456; edm, Karras et al. 2022,
arXiv 2206.00364, table 1. sd is the standard deviation of the data.

The formulas hold for any positive alpha and sigma, not only where `alpha^2 + sigma^2 = 1`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.diffusion.arrays import Level, Video, expand
from vdm_jax.errors import UserError

Prediction = Literal["x", "eps", "v", "flow", "edm"]  # what a network may be trained to predict
PREDICTIONS: tuple[str, ...] = ("x", "eps", "v", "flow", "edm")


def predictions_of(
    x: Video, eps: Video, alpha: Level, sigma: Level, sigma_data: float = 0.5
) -> dict[str, Array]:
    """All predictions that describe the same pair of clean video and noise, keyed by name.

    alpha and sigma are [B] or [B, T]; sigma_data, used by 'edm' only, is the standard deviation of the data.
    """
    alpha, sigma = expand(alpha, x), expand(sigma, x)
    rho = sigma / alpha
    return {
        "x": x,
        "eps": eps,
        "v": alpha * eps - sigma * x,
        "flow": eps - x,
        "score": -eps / sigma,
        "edm": (rho * x / sigma_data - sigma_data * eps) / jnp.sqrt(rho**2 + sigma_data**2),
    }


def clean_and_noise(
    kind: str, value: Video, z: Video, alpha: Level, sigma: Level, sigma_data: float = 0.5
) -> tuple[Video, Video]:
    """The pair (x, eps) that `value`, a prediction of the given kind at `z`, implies.

    Each pair is written so that neither member is obtained by subtracting almost equal numbers where that can
    be avoided: v, flow and edm stay well conditioned at both ends of the schedule; x loses precision in eps
    as sigma goes to 0, eps and score in x as alpha goes to 0. Raises `UserError` for an unknown kind.
    """
    alpha, sigma = expand(alpha, z), expand(sigma, z)
    if kind == "x":
        return value, (z - alpha * value) / sigma
    if kind == "eps":
        return (z - sigma * value) / alpha, value
    if kind == "v":
        power = alpha**2 + sigma**2
        return (alpha * z - sigma * value) / power, (sigma * z + alpha * value) / power
    if kind == "flow":
        total = alpha + sigma
        return (z - sigma * value) / total, (z + alpha * value) / total
    if kind == "score":
        return (z + sigma**2 * value) / alpha, -sigma * value
    if kind == "edm":
        scaled, rho = z / alpha, sigma / alpha
        norm = jnp.sqrt(rho**2 + sigma_data**2)
        x = sigma_data * (sigma_data * scaled / norm + rho * value) / norm
        return x, (rho * scaled / norm - sigma_data * value) / norm
    raise UserError(f"prediction={kind!r} is unknown; permitted: {', '.join(PREDICTIONS)}, score")


def convert(
    kind: str, value: Video, z: Video, alpha: Level, sigma: Level, sigma_data: float = 0.5
) -> dict[str, Array]:
    """All predictions implied by `value`, one of the given kind at `z`, which is itself passed through."""
    x, eps = clean_and_noise(kind, value, z, alpha, sigma, sigma_data)
    return {**predictions_of(x, eps, alpha, sigma, sigma_data), kind: value}


def input_scale(kind: str, alpha: Level, sigma: Level, sigma_data: float = 0.5) -> Level:
    """The factor on z before it enters the network: `c_in / alpha` for 'edm', 1 for all others."""
    if kind == "edm":
        return 1 / jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
    return jnp.ones_like(alpha)


def log_precision(kind: str, logsnr: Level, sigma_data: float = 0.5) -> Level:
    """Log of the ratio of the squared error in a prediction to that in x, at the same z.

    This is the weight on the x error that a plain squared error in that prediction amounts to: 1 for x, SNR
    for eps, SNR + 1 for v (variance preserving), (1 + sqrt SNR)^2 for flow, SNR + 1/sd^2 for edm. Raises `UserError`
    for an unknown kind.
    """
    if kind == "x":
        return jnp.zeros_like(logsnr)
    if kind == "eps":
        return logsnr
    if kind == "v":
        return jax.nn.softplus(logsnr)
    if kind == "flow":
        return 2 * jax.nn.softplus(logsnr / 2)
    if kind == "edm":
        return jnp.logaddexp(logsnr, -2 * jnp.log(sigma_data))
    raise UserError(f"prediction={kind!r} is unknown; permitted: {', '.join(PREDICTIONS)}")
