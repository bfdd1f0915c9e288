"""Functions from denoisers to denoisers: guidance by several estimates, and thresholding.

Guidance weights are in the `1 + w` form: 0 is off, and classifier-free guidance is `x_c + w (x_c - x_u)` (Ho &
Salimans 2022, arXiv 2207.12598; for video Ho et al. 2022, arXiv 2204.03458, section 2). Combining estimates of x
or of eps with weights that sum to one is the same thing, since both are affine in each other at a given z, so x
is used throughout.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vdm_jax.configuration import CountOrZero, Range, Share, check_value
from vdm_jax.diffusion.arrays import Denoiser, Level, Video, expand
from vdm_jax.diffusion.percentile import percentile_of_magnitudes
from vdm_jax.errors import UserError

# A number; an array that broadcasts to [B, T], so [T] is per frame and [B, 1] per sample; or a function of
# the log-SNR [B] that returns a weight per sample [B].
Weight = float | Float[Array, "..."] | Callable[[Level], Level]
Estimates = Callable[[Video, Level], tuple[Video, ...]]  # several estimates of the same clean video


def batched(denoise_with: Callable[[Video, Level, Any], Video], conditionings: Sequence[Any]) -> Estimates:
    """The estimates for N conditionings by one call of `denoise_with(z, logsnr, conditioning)`.

    The call sees a batch of B * N. Conditionings are pytrees of one structure, leading dimension B. The N
    copies of a sample are adjacent in the stacked batch, so where the batch is sharded they stay on the
    sample's device. Raises `UserError` when structures or shapes differ.
    """
    described = [jax.tree.map(jnp.shape, conditioning) for conditioning in conditionings]
    if not described or any(other != described[0] for other in described):
        raise UserError(
            f"batched() was given {len(described)} conditionings of unequal structure or shapes; "
            "permitted: one or more with the same parts, absent ones replaced by their null values"
        )
    count = len(conditionings)

    def interleave(*leaves: Array) -> Array:
        return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])

    def estimates(z: Video, logsnr: Level) -> tuple[Video, ...]:
        stacked = jax.tree.map(interleave, *conditionings)
        x_hat = denoise_with(interleave(*[z] * count), interleave(*[logsnr] * count), stacked)
        x_hat = x_hat.reshape(-1, count, *x_hat.shape[1:])
        return tuple(x_hat[:, n] for n in range(count))

    return estimates


def guidance_weight(guidance: float | None, guidance_scale: float | None) -> float | None:
    """The weight w, however it is written: `guidance` is w, `guidance_scale` is s = 1 + w.

    None where neither is given. Raises `UserError` where both are.
    """
    if guidance is not None and guidance_scale is not None:
        raise UserError(f"guidance={guidance} with guidance_scale={guidance_scale}; permitted: one of them, since "
                        "guidance_scale = 1 + guidance")
    return guidance if guidance_scale is None else guidance_scale - 1


def combine(
    estimates: Estimates, terms: Sequence[tuple[int, int, Weight]], *, rescale: float = 0.0
) -> Denoiser:
    """`x_0 + sum w (x_i - x_j)` over terms (i, j, w), a form that covers all guidance by estimates.

    Classifier-free guidance is [(0, 1, w)] on estimates (conditional, unconditional). Two conditions, text
    and image, on estimates (both, image, none) are [(0, 1, w_text), (1, 2, w_image)] (Brooks et al. 2023,
    arXiv 2211.09800, eq. 3, whose scales are 1 + w). `rescale` in [0, 1] pulls the standard deviation of each
    sample back to that of x_0, against over-exposure at large weights (Lin et al. 2023, arXiv 2305.08891,
    section 3.4, who rescale the network's output; here it is the estimate of x).
    """
    check_value(rescale, Share, "rescale")
    # Left out rather than multiplied by 0, so that the compiler drops an estimate that nothing else uses.
    active = [term for term in terms if not (isinstance(term[2], int | float) and term[2] == 0)]

    def denoise(z: Video, logsnr: Level) -> Video:
        x = estimates(z, logsnr)
        guided = x[0] + sum(_weights(weight, z, logsnr) * (x[i] - x[j]) for i, j, weight in active)
        if not rescale:
            return guided
        axes = tuple(range(1, z.ndim))
        ratio = x[0].std(axes, keepdims=True) / jnp.maximum(guided.std(axes, keepdims=True), 1e-8)
        return guided * (1 - rescale + rescale * ratio)

    return denoise


def in_turn(weights: Mapping[str, Weight]) -> tuple[list[tuple[str, ...]], list[tuple[int, int, Weight]]]:
    """Guidance by several conditions, which come in one after the other in the order of their names: from the estimate
    without any of them, `x = x() + s_1 (x(c_1) - x()) + s_2 (x(c_1, c_2) - x(c_1)) + ...`.

    With image, then text it is that of InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800, eq. 3), with picture,
    then pose that of DreamPose (Karras et al. 2023, arXiv 2304.06025), and with time, then content that of Gen-1 (Esser
    et al. 2023, arXiv 2302.03011), whose estimate without time is made frame by frame. With one name it is
    classifier-free guidance.

    Args:
      weights: w = s - 1 by name.

    Returns:
      The estimates needed, each as the names that it lacks, all conditions first; and the terms of `combine`. What only
      weights of 0 would use is not there.
    """
    names = list(weights)
    active = [place for place in reversed(range(len(names)))
              if not (isinstance(weights[names[place]], int | float) and weights[names[place]] == 0)]
    present = sorted({len(names), *active, *(place + 1 for place in active)}, reverse=True)  # how many have come in
    at = {count: number for number, count in enumerate(present)}
    terms = [(at[place + 1], at[place], weights[names[place]]) for place in active]
    return [tuple(names[count:]) for count in present], terms


def _weights(weight: Weight, z: Video, logsnr: Level) -> Array:
    """The weight with dimensions that broadcast against z."""
    if callable(weight):
        return expand(weight(logsnr), z)
    weight = jnp.asarray(weight)
    batch, frames = z.shape[:2]
    shape = (1,) * (2 - weight.ndim) + weight.shape
    if len(shape) > 2 or shape[0] not in (1, batch) or shape[1] not in (1, frames):
        raise UserError(
            f"guidance weight of shape {weight.shape} for {batch} videos of {frames} frames; permitted: "
            f"a number, [{frames}] per frame, [{batch}, 1] per sample, [{batch}, {frames}] for both"
        )
    return expand(weight.reshape(shape), z)


def oscillating(
    high: float, low: float, levels: Float[Array, " steps"], constant_steps: int
) -> Callable[[Level], Level]:
    """Weight `high` for the first `constant_steps` steps, then `low, high, low, ...`.

    Oscillating guidance of Imagen Video (Ho et al. 2022, arXiv 2210.02303). `levels` are those of the sampler
    (`sampling.sampling_levels`); a log-SNR belongs to the step whose level is nearest.
    """
    check_value(constant_steps, CountOrZero, "constant_steps")

    def weight(logsnr: Level) -> Level:
        step = jnp.argmin(jnp.abs(logsnr[..., None] - levels), axis=-1)
        return jnp.where((step >= constant_steps) & ((step - constant_steps) % 2 == 0), low, high)

    return weight


def by_step(
    weights: Float[ArrayLike, " steps"], levels: Float[Array, " steps"]
) -> Callable[[Level], Level]:
    """A weight for each step of a sampler with these levels; a log-SNR belongs to the step whose level is nearest."""
    return lambda logsnr: jnp.asarray(weights)[jnp.argmin(jnp.abs(logsnr[..., None] - levels), axis=-1)]


def static_threshold(denoise: Denoiser) -> Denoiser:
    """Clips each estimate to [-1, 1] (Saharia et al. 2022, arXiv 2205.11487, section 2.3)."""
    return lambda z, logsnr: jnp.clip(denoise(z, logsnr), -1, 1)


def dynamic_threshold(
    denoise: Denoiser, percentile: float = 99.5, per: Literal["clip", "frame"] = "clip"
) -> Denoiser:
    """Clips to [-s, s] and divides by s, the given percentile of |x_hat| but at least 1.

    Saharia et al. 2022, arXiv 2205.11487, section 2.3. percentile is in (0, 100]. One s per clip keeps
    brightness constant over frames, one per frame follows each.
    """
    check_value(percentile, Annotated[float, Range(above=0, most=100)], "percentile")
    check_value(per, Literal["clip", "frame"], "per")

    def thresholded(z: Video, logsnr: Level) -> Video:
        x_hat = denoise(z, logsnr)
        axes = tuple(range(1 if per == "clip" else 2, x_hat.ndim))
        limit = jnp.maximum(percentile_of_magnitudes(x_hat, percentile, axes), 1.0)
        return jnp.clip(x_hat, -limit, limit) / limit

    return thresholded
