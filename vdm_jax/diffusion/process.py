"""The diffusion process of a stage: schedule, prediction, weighting and training levels in one config."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.configuration import Positive, Size, SizeOrZero, config
from vdm_jax.diffusion import predictions
from vdm_jax.diffusion.arrays import Denoiser, Level, Network, Video, expand
from vdm_jax.diffusion.levels import LevelSampling, UniformTime
from vdm_jax.diffusion.predictions import PREDICTIONS, Prediction
from vdm_jax.diffusion.schedules import CosineSchedule, Schedule
from vdm_jax.diffusion.weightings import UniformWeighting, Weighting
from vdm_jax.errors import UserError


@config
class Process:
    """What is added to a video, what the network predicts of it, and how the error counts.

    Raises `UserError` for a prediction that its schedule does not define: 'v' needs a variance-preserving
    schedule, 'edm' the variance-exploding one, and 'eps' leaves x undetermined at zero terminal SNR.
    """

    schedule: Schedule = CosineSchedule()  # time to log-SNR, and the family of (alpha, sigma)
    prediction: Prediction = "v"  # what the network's output means
    weighting: Weighting = UniformWeighting()  # weight of the loss by log-SNR
    level_sampling: LevelSampling = UniformTime()  # distribution of training levels
    # Every frame has a level of its own, drawn independently (Diffusion Forcing: Chen et al. 2024, arXiv 2407.01392)
    frame_levels: bool = False
    frame_block: Size = 1  # with it: frames that share a level, those of a block
    sigma_data: Positive = 0.5  # standard deviation of the data, for prediction 'edm' only
    # Smallest resolution of a multiscale loss, pixels of the shorter side (32 published): the sum of the errors pooled
    # to s = d, d/2, d/4, ... pixels, each weighted by 1 / s (Hoogeboom et al. 2023, arXiv 2301.11093). 0: plain
    multiscale: SizeOrZero = 0
    # How the network's error counts; the absolute one has the weights that the squared one has
    error: Literal["squared", "absolute"] = "squared"

    def __post_init__(self):
        if self.error == "absolute" and self.multiscale:
            raise UserError(f"Process.error={self.error!r} with multiscale={self.multiscale}; permitted: 'squared', or "
                            "'absolute' with multiscale=0")
        if self.frame_block > 1 and not self.frame_levels:
            raise UserError(f"Process.frame_block={self.frame_block} with frame_levels=False; permitted: 1")
        family, name = self.schedule.family.name, type(self.schedule).__name__
        permitted = [kind for kind in PREDICTIONS if {"v": "vp", "edm": "ve"}.get(kind, family) == family]
        if getattr(self.schedule, "zero_terminal_snr", False):
            permitted.remove("eps")
            name += "(zero_terminal_snr=True)"
        if self.prediction not in permitted:
            raise UserError(
                f"Process.prediction={self.prediction!r} is not defined with schedule {name} of family "
                f"{family!r}; permitted: {', '.join(permitted)}"
            )

    def diffuse(self, x: Video, noise: Video, logsnr: Level) -> Video:
        """`z = alpha x + sigma noise`; logsnr is [B], or [B, T] where frames differ."""
        alpha, sigma = self.schedule.alpha_sigma(logsnr)
        return expand(alpha, x) * x + expand(sigma, x) * noise

    def predictions(self, raw: Video, z: Video, logsnr: Level) -> dict[str, Array]:
        """Everything the network's output `raw` at `z` implies: x, eps, v, flow, score, edm; float32."""
        alpha, sigma = self.schedule.alpha_sigma(logsnr)
        return predictions.convert(self.prediction, raw.astype(jnp.float32), z, alpha, sigma, self.sigma_data)

    def network_input(self, z: Video, logsnr: Level) -> Video:
        """z as the network sees it: of unit variance for 'edm', z itself otherwise."""
        scale = predictions.input_scale(self.prediction, *self.schedule.alpha_sigma(logsnr), self.sigma_data)
        return expand(scale, z) * z

    def denoiser(self, network: Network) -> Denoiser:
        """The denoiser `(z, logsnr) -> x_hat` of a network with its parameters and conditioning bound."""

        def denoise(z: Video, logsnr: Level) -> Video:
            raw = network(self.network_input(z, logsnr), logsnr)
            return self.predictions(raw, z, logsnr)["x"]

        return denoise

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> tuple[Level, Video]:
        """Training levels of a batch of videos of `shape`, one log-SNR [B] per example or, with `frame_levels`, [B, T]
        per frame, and its noise."""
        level_key, noise_key = jax.random.split(key)
        leading = (shape[0], -(-shape[1] // self.frame_block)) if self.frame_levels else shape[:1]
        levels = self.level_sampling.draw(level_key, math.prod(leading), self.schedule).reshape(leading)
        if self.frame_block > 1:
            levels = jnp.repeat(levels, self.frame_block, axis=1)[:, : shape[1]]
        return levels, jax.random.normal(noise_key, shape)

    def loss(
        self,
        network: Network,
        x: Video,
        key: Key[Array, ""] | None,
        *,
        mask: Float[Array, "..."] | None = None,
        logsnr: Level | None = None,
        noise: Video | None = None,
    ) -> tuple[Float[Array, " B"], dict[str, Float[Array, " B"]]]:
        """Weighted squared (or absolute) error of one denoising step per example, [B], and an aux dict of [B] arrays.

        x is [B, T, H, W, C] in [-1, 1]. `mask`, broadcastable to x (such as [B, T, 1, 1, 1]), restricts the
        mean to where it is 1; an example with an empty mask has loss 0. `logsnr`, [B] or of single frames [B, T], and
        `noise` (like x) replace what would be drawn (`draw`); with both, `key` may be None. Each frame's error has the
        weight of its own level. aux: 'logsnr', 'prediction_mse' (unweighted, in the network's own prediction), 'x_mse'
        (the same error, seen in x) and 'weight' (loss = weight * x_mse, unless `multiscale` counts the error at several
        resolutions); of levels and weights of frames their mean.

        Raises `UserError` for levels of another shape, for a video that `multiscale` cannot halve, and for a mask
        next to it that differs in a frame.
        """
        x = x.astype(jnp.float32)
        if logsnr is not None and jnp.shape(logsnr) not in (x.shape[:1], x.shape[:2]):
            raise UserError(f"Process.loss: logsnr of shape {list(jnp.shape(logsnr))} for videos of {list(x.shape)}; "
                            f"permitted: {list(x.shape[:1])}, one level per example, or {list(x.shape[:2])}, per frame")
        if noise is not None and jnp.shape(noise) != x.shape:
            raise UserError(f"Process.loss: noise of shape {list(jnp.shape(noise))} for videos of {list(x.shape)}; "
                            f"permitted: {list(x.shape)}")
        if logsnr is None or noise is None:
            drawn_logsnr, drawn_noise = self.draw(key, x.shape)
            logsnr = drawn_logsnr if logsnr is None else logsnr
            noise = drawn_noise if noise is None else noise
        alpha, sigma = self.schedule.alpha_sigma(logsnr)
        z = self.diffuse(x, noise, logsnr)
        raw = network(self.network_input(z, logsnr), logsnr).astype(jnp.float32)
        target = predictions.predictions_of(x, noise, alpha, sigma, self.sigma_data)[self.prediction]
        error = raw - target
        # The error is taken where the network makes it and only then rescaled: going through x_hat would
        # subtract almost equal numbers at one end of the schedule.
        own = predictions.log_precision(self.prediction, logsnr, self.sigma_data)
        log_weight = self.weighting.log_weight(logsnr, own)
        mse = masked_mean(jnp.square(error), mask)
        if logsnr.ndim == 1:
            loss, x_mse = self._counted(error, mask) * jnp.exp(log_weight - own), mse * jnp.exp(-own)
        else:  # weights of frames go inside the mean over frames
            power = 1.0 if self.error == "absolute" else 0.5
            loss = self._counted(error * expand(jnp.exp(power * (log_weight - own)), error), mask)
            x_mse = masked_mean(jnp.square(error * expand(jnp.exp(-own / 2), error)), mask)
        weight, logsnr = (a.reshape(len(x), -1).mean(1) for a in (jnp.exp(log_weight), logsnr))
        return loss, {"logsnr": logsnr, "prediction_mse": mse, "x_mse": x_mse, "weight": weight}

    def _counted(self, error: Video, mask: Float[Array, "..."] | None) -> Float[Array, " B"]:
        """The network's error as it counts, without weights."""
        if self.multiscale:  # errors in x, eps and v differ by a factor per level, so that pooling them is the same
            return multiscale_error(error, self.multiscale, mask)
        return masked_mean(jnp.abs(error) if self.error == "absolute" else jnp.square(error), mask)


def multiscale_error(
    error: Float[Array, "B T H W C"], smallest: int, mask: Float[Array, "..."] | None = None
) -> Float[Array, " B"]:
    """`sum_s 1/s mean |D_s[error]|^2` over s = d, d/2, ... down to `smallest` pixels of the shorter side, where D_s is
    the mean over blocks (Hoogeboom et al. 2023, arXiv 2301.11093). Raises `UserError` as `Process.loss` says."""
    side = min(error.shape[2:4])
    if side < smallest:
        raise UserError(f"Process.multiscale={smallest} for frames of {error.shape[2]}x{error.shape[3]}; permitted: up "
                        f"to {side}")
    if mask is not None and any(size > 1 for size in mask.shape[2:4]):
        raise UserError(f"Process.multiscale={smallest} with a mask of shape {mask.shape}; permitted: the same within "
                        "a frame")
    total = masked_mean(jnp.square(error), mask) / side
    while side // 2 >= smallest:
        height, width = error.shape[2:4]
        if height % 2 or width % 2:
            raise UserError(f"Process.multiscale={smallest}: frames of {height}x{width} cannot be halved; permitted: "
                            "even sizes down to it")
        halves = error.reshape(*error.shape[:2], height // 2, 2, width // 2, 2, -1)
        error, side = halves.mean((3, 5)), side // 2
        total = total + masked_mean(jnp.square(error), mask) / side
    return total


def masked_mean(value: Video, mask: Float[Array, "..."] | None) -> Float[Array, " B"]:
    """Mean over all but the first dimension of where `mask` is 1; 0 where it is empty."""
    axes = tuple(range(1, value.ndim))
    if mask is None:
        return value.mean(axes)
    mask = jnp.broadcast_to(mask, value.shape).astype(value.dtype)
    return (value * mask).sum(axes) / jnp.maximum(mask.sum(axes), 1)
