"""Bounds on estimates of the clean video, as the schedulers of diffusers have them."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from vdm_jax.configuration import Positive, ShareAboveZero, config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.percentile import percentile_of_magnitudes


@config
class Threshold:
    """Clips to [-limit, limit], or with `ratio` to [-s, s] and divides by s.

    s is the quantile `ratio` of |x_hat|, at least 1 and at most `limit` (dynamic thresholding: Saharia et al. 2022,
    arXiv 2205.11487, section 2.3).
    """

    limit: Positive = 1.0
    ratio: ShareAboveZero | None = None  # quantile in (0, 1]; None: the limit alone
    per: Literal["clip", "frame"] = "clip"  # what has an s of its own

    def __call__(self, x_hat: Video) -> Video:
        """The bounded estimate, same shape."""
        if self.ratio is None:
            return jnp.clip(x_hat, -self.limit, self.limit)
        axes = tuple(range(1 if self.per == "clip" else 2, x_hat.ndim))
        s = jnp.minimum(jnp.maximum(percentile_of_magnitudes(x_hat, 100 * self.ratio, axes), 1.0), self.limit)
        return jnp.clip(x_hat, -s, s) / s
