"""Corruption of a low-resolution conditioning video, so that super-resolution forgives its flaws."""

import math
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.configuration import Ascending, LogSNR, Positive, Share, config
from vdm_jax.diffusion.arrays import Level, Video, expand, noise_from_keys
from vdm_jax.diffusion.levels import UniformTime
from vdm_jax.diffusion.schedules import CosineSchedule

# A sampler draws from streams 0, 1, 2, ... of a sample's key; here the same key gives other noise.
_NOISE_STREAM, _BLUR_STREAM = 2**31 - 1, 2**31 - 2
Place = Literal["enlarged", "low"]  # which video is corrupted: the one brought to full size, or the one before that


@config
class _Noise:
    """Variance-preserving Gaussian noise at a level the network is conditioned on: drawn in training, uniformly in
    log-SNR between the bounds of `training_logsnr` or, where that is None, uniformly in the time of `schedule`; fixed
    in sampling, where an input is corrupted once and kept for all steps."""

    while_sampling: ClassVar[bool] = True

    # Lowest and highest log-SNR; None: uniform in time
    training_logsnr: Annotated[tuple[LogSNR, LogSNR], Ascending()] | None = None
    sampling_logsnr: LogSNR = math.log(3.0)  # log-SNR at sampling; SNR 3 or 5 in Ho et al. 2022, arXiv 2210.02303
    schedule: CosineSchedule = CosineSchedule()  # time to log-SNR, where training_logsnr is None

    def draw_logsnr(self, key: Key[Array, ""], batch: int) -> Float[Array, " B"]:
        """Training levels of a batch."""
        if self.training_logsnr is None:
            return UniformTime().draw(key, batch, self.schedule)
        low, high = self.training_logsnr
        return jax.random.uniform(key, (batch,), minval=low, maxval=high)

    def augment(self, x: Video, keys: Key[Array, " B"], logsnr: Level, shared: bool = False) -> Video:
        """`alpha x + sigma eps` at `logsnr` [B]; the noise of sample b comes from keys[b] alone, and is the same for
        all of its frames where it is `shared`."""
        alpha, sigma = self.schedule.alpha_sigma(logsnr)
        return expand(alpha, x) * x + expand(sigma, x) * noise_from_keys(keys, _NOISE_STREAM, x.shape, shared)


@config
class NoiseAugmentation(_Noise):
    """Noise on the finished low-resolution video (non-truncated: Ho et al. 2021, arXiv 2106.15282, section 3.3; Saharia
    et al. 2022, arXiv 2205.11487, section 2.4)."""

    # "low" is q(z_s | z_0) of the stage before, as in the first paper; which one Imagen means is not published
    at: Place = "enlarged"


@config
class TruncatedConditioningAugmentation(_Noise):
    """The stage before stops at level s and hands over its z_s, which is then not finished (Ho et al. 2021, arXiv
    2106.15282, section 3.2). Training is that of `NoiseAugmentation(at="low")`; a finished video, such as a real one,
    is taken to z_s by noise. s is `sampling_logsnr`.
    """

    at: ClassVar[Place] = "low"


@config
class BlurAugmentation:
    """3x3 Gaussian blur of some of the training videos, never at sampling.

    Ho et al. 2021, arXiv 2106.15282, section 3.1. All frames of a video are blurred alike. The network, which takes a
    level from every augmentation, is given the clean one.
    """

    while_sampling: ClassVar[bool] = False
    sampling_logsnr: ClassVar[float] = 20.0  # the clean end of the usual schedules

    probability: Share = 0.5  # fraction of training videos that are blurred
    sigma: Annotated[tuple[Positive, Positive], Ascending()] = (0.4, 0.6)  # standard deviation's range, pixels
    at: Place = "low"  # not published; an enlarged video is smoother than this kernel already

    def draw_logsnr(self, key: Key[Array, ""], batch: int) -> Float[Array, " B"]:
        """The level that the network is conditioned on in training: always the same."""
        return jnp.full((batch,), self.sampling_logsnr)

    def augment(
        self, x: Float[Array, "B T H W C"], keys: Key[Array, " B"], logsnr: Level | None = None, shared: bool = True
    ) -> Float[Array, "B T H W C"]:
        """x, blurred or not; what happens to sample b depends on keys[b] alone, and not on the level. Its frames always
        share it."""
        low, high = self.sigma
        draws = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _BLUR_STREAM), (2,)))(keys)
        blurred = gaussian_blur(x, low + (high - low) * draws[:, 0])
        return jnp.where(expand(draws[:, 1] < self.probability, x), blurred, x)


def gaussian_blur(x: Float[Array, "B T H W C"], sigma: Float[Array, " B"]) -> Float[Array, "B T H W C"]:
    """3x3 blur of every frame, standard deviation `sigma` pixels, border pixels repeated outwards."""
    side = jnp.exp(-0.5 / sigma**2)
    centre, side = expand(1 / (1 + 2 * side), x), expand(side / (1 + 2 * side), x)
    for axis in (2, 3):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)], mode="edge")
        before, after = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in (0, 2))
        x = centre * x + side * (before + after)
    return x


Augmentation = NoiseAugmentation | TruncatedConditioningAugmentation | BlurAugmentation
