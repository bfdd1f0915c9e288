"""Sampling given a part of the video: functions from denoisers to denoisers.

A model of whole videos also gives videos of which something is given: their first frames (extension), some frames in
between (interpolation), a low-resolution version (super-resolution), pixels (inpainting), or several at once. Ho et al.
2022, arXiv 2204.03458, section 3.1:

- `replaced`: the given part of every estimate is set to what is given. A sampler then draws the given part of z from
  `q(z_s | z_t, x_given)`, the replacement method. What is unknown does not learn of it except through the network.
- `shown_clean`: a network whose frames have noise levels of their own sees the given ones without noise.
- `reconstruction_guided`: the estimate also moves down the gradient of how badly it reconstructs what is given, through
  the network.

The two compose: `replaced(reconstruction_guided(denoise, errors, weight, family), given, mask)`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vdm_jax.diffusion.arrays import Denoiser, Level, Video, expand
from vdm_jax.diffusion.families import Family
from vdm_jax.errors import UserError

Error = Callable[[Video], Float[Array, " B"]]  # squared error of a reconstruction, summed (not averaged) per video


def masked_error(given: Video, mask: Float[Array, "..."]) -> Error:
    """`|| x_given - x_hat ||^2` where `mask`, broadcastable to the video, is 1."""
    return lambda x: jnp.square(mask * (given - x)).sum(tuple(range(1, x.ndim)))


def low_resolution_error(low: Video, degrade: Callable[[Video], Video]) -> Error:
    """`|| low - D(x_hat) ||^2` for a differentiable `degrade` D, such as averaging pixels or dropping frames."""
    return lambda x: jnp.square(low - degrade(x)).sum(tuple(range(1, low.ndim)))


def replaced(denoise: Denoiser, given: Video, mask: Float[Array, "..."]) -> Denoiser:
    """The denoiser with the given part of its estimate set to what is given: the replacement method."""
    return lambda z, logsnr: jnp.where(mask > 0, given, denoise(z, logsnr))


def shown_clean(
    denoise: Denoiser, given: Video, mask: Float[Array, "..."], level: float | Float[ArrayLike, ""], family: Family
) -> Denoiser:
    """The denoiser of a network whose frames have levels of their own, which sees given frames at the log-SNR `level`
    and without noise: `alpha x_given` in place of z (Diffusion Forcing: Chen et al. 2024, arXiv 2407.01392). Frames of
    which only some pixels are given stay as they are."""
    whole = jnp.broadcast_to(mask, given.shape).min(tuple(range(2, given.ndim))) > 0  # [B, T]
    alpha, _ = family.alpha_sigma(jnp.float32(level))

    def shown(z: Video, logsnr: Level) -> Video:
        logsnr = jnp.asarray(logsnr)
        own = jnp.broadcast_to(logsnr if logsnr.ndim == 2 else logsnr[:, None], whole.shape)
        return denoise(jnp.where(expand(whole, z), alpha * given, z), jnp.where(whole, level, own))

    return shown


def reconstruction_guided(denoise: Denoiser, errors: Sequence[Error], weight: float, family: Family) -> Denoiser:
    """`x_hat - w_r alpha / 2 * grad_z sum of errors`, the gradient taken through the network.

    Args:
      denoise: of whole videos, guidance included, without thresholding (which would stop gradients).
      errors: of what is given.
      weight: w_r; 1 follows from the approximation `q(x_given | z) = N(x_hat, sigma^2 / alpha^2)`, larger weights tend
        to help, with 50 and 9 published for single data sets.
      family: that of the schedule, for alpha.

    On a CPU the gradient of a convolution inside the samplers' loop is many times slower than outside
    (`cascade.programs.stepwise_sampling`). Raises `UserError` for a negative weight and for no errors.
    """
    if weight < 0 or not errors:
        raise UserError(f"reconstruction_guided(weight={weight}) with {len(errors)} errors; permitted: weight >= 0 and "
                        "at least one error")

    def guided(z: Video, logsnr: Level) -> Video:
        def total(z: Video) -> tuple[Float[Array, ""], Video]:
            x_hat = denoise(z, logsnr)
            return sum(error(x_hat).sum() for error in errors), x_hat

        gradient, x_hat = jax.grad(total, has_aux=True)(z)
        alpha, _ = family.alpha_sigma(jnp.asarray(logsnr, jnp.float32))
        return x_hat - expand(weight * alpha / 2, z) * gradient

    return guided
