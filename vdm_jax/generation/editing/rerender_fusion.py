"""How a key frame of Rerender-A-Video is held to other ones (Yang et al. 2023, arXiv 2306.07954, section 4.2): pure
functions, by the equations of the paper and constants of the authors' code, from which they differ in two ways: noise
is made up for along borders of the mask too, and the target of the pixels is not multiplied by it (`pixel_fused`).

Shape: the estimate x_hat of an early step becomes the warped one of another key frame where that is seen. Pixels: in
the middle of the steps z is pulled towards the latents of the warped results. Colours: in late steps x_hat has mean and
standard deviation of each channel from the first key frame (AdaIN: Huang & Belongie 2017, arXiv 1703.06868).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from vdm_jax.diffusion.arrays import Video
from vdm_jax.metrics.flow import opencv, warped
from vdm_jax.metrics.flow_estimators import BY_DIS, FlowEstimator

AROUND = 9  # pixels: side of the window by which what is hidden grows, and of the blur of its border
BLUR = 18.0  # standard deviation of that blur, pixels
FAR = 0.25  # mean difference of a pixel in [-1, 1] from which the error of the autoencoder is not made up for
EPSILON = 1e-5  # of variances


class Motion(NamedTuple):
    """How a frame is found in another one."""

    along: Float[np.ndarray, "H W 2"]  # displacement (x, y) of each pixel, pixels
    hidden: Bool[np.ndarray, "H W"]  # pixels that are not found again on the way back


def motion_to(
    frame: UInt8[np.ndarray, "H W 3"], other: UInt8[np.ndarray, "H W 3"], flows: FlowEstimator = BY_DIS
) -> Motion:
    """Where the pixels of a frame are in another one, by optical flow both ways."""
    forward, backward = flows.both(frame, other)
    return Motion(forward, ~flows.seen(forward, backward))


def soft(hidden: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """What is hidden, with some pixels around it, from 1 to 0 outside."""
    cv2 = opencv()
    mask = hidden.astype(np.float32)
    blurred = cv2.GaussianBlur(cv2.dilate(mask, np.ones((AROUND, AROUND))), (AROUND, AROUND), BLUR)
    return np.clip(blurred + mask, 0, 1)


def shown(mask: Float[np.ndarray, "H W"], factor: int) -> Float[np.ndarray, "H2 W2"]:
    """Of what is hidden, the share of each latent that is not: the least of its pixels."""
    height, width = (size // factor for size in mask.shape)
    return 1 - mask.reshape(height, factor, width, factor).max((1, 3))


def latent_places(along: Float[np.ndarray, "H W 2"], factor: int) -> Int[np.ndarray, "H2 W2 2"]:
    """Row and column of the latent of another frame that each latent of a frame is: the nearest one, within the
    frame, along the mean displacement of its pixels."""
    height, width = (size // factor for size in along.shape[:2])
    mean = along.reshape(height, factor, width, factor, 2).mean((1, 3)) / factor
    rows, columns = np.mgrid[:height, :width]
    found = np.stack([rows + mean[..., 1], columns + mean[..., 0]], -1)
    return np.clip(np.rint(found), 0, [height - 1, width - 1]).astype(np.int32)


def moved(x: Float[Array, "B 1 H W C"], places: Int[Array, "B H W 2"]) -> Float[Array, "B 1 H W C"]:
    """Latents of another frame at these places."""
    return jax.vmap(lambda x, places: x[:, places[..., 0], places[..., 1]])(x, places)


def shape_fused(
    x_hat: Float[Array, "B 1 H W C"], other: Float[Array, "B 1 H W C"], places: Int[Array, "B H W 2"],
    mask: Float[Array, "B 1 H W 1"],
) -> Float[Array, "B 1 H W C"]:
    """An estimate that, where the mask is 1, is that of another key frame, moved."""
    return mask * moved(other, places) + (1 - mask) * x_hat


def coloured(x_hat: Float[Array, "B 1 H W C"], first: Float[Array, "B 1 H W C"]) -> Float[Array, "B 1 H W C"]:
    """An estimate with mean and standard deviation of each channel of another one."""
    def moments(x: Array) -> tuple[Array, Array]:
        return x.mean((2, 3), keepdims=True), jnp.sqrt(x.var((2, 3), keepdims=True) + EPSILON)

    (mean, std), (wanted, wanted_std) = moments(x_hat), moments(first)
    return (x_hat - mean) / std * wanted_std + wanted


def pixel_fused(
    z: Video, direction: Video, target: Video, noise: Video, weight: Float[Array, "B 1 H W 1"], inner: float,
    scales: tuple[Any, Any],
) -> Float[Array, "B 1 H W C"]:
    """z, of which `direction` is the noise that the DDIM step before has put in, drawn by `weight` towards a target.

    With alpha and sigma of z's level: `w (alpha target + sigma noise) + (1 - w) (z - direction) + r direction`, where
    `r = max(1 - w, inner sqrt(1 - w^2))`: two independent noises that are mixed have less than either, which the
    second term makes up for; `inner` 1 wholly, 0 not at all. By default r of the authors' code is `1 - w`
    wherever w differs from its neighbours, and their target is multiplied by the mask (w over its strength)
    beforehand; here neither is done.
    """
    alpha, sigma = scales
    kept = jnp.maximum(1 - weight, inner * jnp.sqrt(1 - weight**2))
    return weight * (alpha * target + sigma * noise) + (1 - weight) * (z - direction) + kept * direction


def blended(
    rough: Float[np.ndarray, "H W 3"], first: tuple[Float[np.ndarray, "H W 3"], Motion],
    previous: tuple[Float[np.ndarray, "H W 3"], Motion],
) -> tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W"]]:
    """The previous result over a rough one, and the first over both, each moved to where it is seen; and what neither
    shows, softly. Pictures are in [-1, 1]; each comes with how the frame is found in it."""
    found = rough
    for picture, motion in (previous, first):
        mask = soft(motion.hidden)[..., None]
        found = (1 - mask) * warped(picture, motion.along) + mask * found
    return found, soft(first[1].hidden & previous[1].hidden)


def faithful(
    encode: Callable[[Video], Video], decode: Callable[[Video], Video], video: Float[Array, "B 1 H W 3"]
) -> Float[Array, "B 1 H2 W2 C"]:
    """Latents of a picture whose decoding is closer to it than that of its plain latents z (fidelity-oriented
    encoding): `z + (1 - m) (z - z')`, where z' is z decoded and encoded again, so that what a round trip loses is made
    up for beforehand; m is 1 around pixels that this brings far from the picture."""
    z = encode(video)
    change = z - encode(decode(z))
    far = (jnp.abs(decode(z + change) - video).mean(-1, keepdims=True) > FAR).astype(jnp.float32)
    far = jax.image.resize(far, (*z.shape[:4], 1), "bilinear", antialias=False) > 0
    grown = jax.lax.reduce_window(far.astype(z.dtype), 0.0, jax.lax.max, (1, 1, 3, 3, 1), (1, 1, 1, 1, 1), "SAME")
    return z + (1 - grown) * change


def steps_of(period: tuple[float, ...], count: int, *, ends: bool) -> tuple[int, ...]:
    """Numbers of the steps, of so many, in a period of shares of them, with the steps at its ends or without; an empty
    period has none."""
    if not period:
        return ()
    first, last = (round(share * count, 6) for share in period)  # 0.29 of 100 is 29
    return tuple(n for n in range(count) if (first <= n <= last if ends else first < n < last))
