"""How noise levels are drawn in training: each config draws one log-SNR per example.

With `stratified`, one uniform number u is drawn and the batch uses the quantiles `(u + b/B) mod 1`, so that it
covers all levels evenly and the loss varies less (Kingma et al. 2021, arXiv 2107.00630, appendix I.1). Which example
has which of them is drawn too: in batch order, two levels of a batch (that of the noise and that of an augmentation)
would differ by one number for all examples. Each example's level still has the intended distribution, so the expected
loss is unchanged.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.configuration import LogNoise, Range, SpreadAboveZero, config
from vdm_jax.diffusion.schedules import BetaTable, Schedule
from vdm_jax.errors import UserError


def _quantiles(key: Key[Array, ""], batch: int, stratified: bool) -> Float[Array, " B"]:
    if stratified:
        offset_key, order_key = jax.random.split(key)
        places = jax.random.permutation(order_key, batch)
        return (jax.random.uniform(offset_key) + places / batch) % 1.0
    return jax.random.uniform(key, (batch,))


def _normals(key: Key[Array, ""], batch: int, stratified: bool) -> Float[Array, " B"]:
    # The quantile 0 that uniform draws include would be minus infinity.
    edge = 2.0**-24
    return jax.scipy.special.ndtri(jnp.clip(_quantiles(key, batch, stratified), edge, 1 - edge))


@config
class UniformTime:
    """Time uniform in [0, 1]."""

    stratified: bool = True  # spread the times of one batch evenly

    def draw(self, key: Key[Array, ""], batch: int, schedule: Schedule) -> Float[Array, " B"]:
        """One log-SNR per example."""
        return schedule.logsnr(_quantiles(key, batch, self.stratified))


@config
class UniformTimestep:
    """Uniform over the whole timesteps of a table of betas (Ho et al. 2020, arXiv 2006.11239)."""

    stratified: bool = True  # spread the timesteps of one batch evenly

    def draw(self, key: Key[Array, ""], batch: int, schedule: Schedule) -> Float[Array, " B"]:
        """One log-SNR per example. Raises `UserError` for a schedule without timesteps."""
        if not isinstance(schedule, BetaTable):
            raise UserError(f"UniformTimestep with {type(schedule).__name__}; permitted: a schedule of "
                            "betas, such as LinearBetaSchedule")
        number = jnp.floor(_quantiles(key, batch, self.stratified) * schedule.steps)
        return schedule.logsnr_at(jnp.minimum(number, schedule.steps - 1))


@config
class LogNormalSigma:
    """`log(sigma / alpha)` normal (Karras et al. 2022, arXiv 2206.00364, table 1).

    The tails are not cut at the ends of the schedule.
    """

    mean: LogNoise = -1.2  # P_mean, of the natural logarithm
    std: SpreadAboveZero = 1.2  # P_std
    stratified: bool = True  # spread the levels of one batch evenly over the quantiles

    def draw(self, key: Key[Array, ""], batch: int, schedule: Schedule) -> Float[Array, " B"]:
        """One log-SNR per example."""
        return -2 * (self.mean + self.std * _normals(key, batch, self.stratified))


@config
class LogitNormalTime:
    """`logit(t)` normal, favouring mid-path (Esser et al. 2024, arXiv 2403.03206, section 3.1)."""

    mean: LogNoise = 0.0  # of logit t; above 0 is more noise
    std: SpreadAboveZero = 1.0  # of logit t
    stratified: bool = True  # spread the times of one batch evenly over the quantiles

    def draw(self, key: Key[Array, ""], batch: int, schedule: Schedule) -> Float[Array, " B"]:
        """One log-SNR per example."""
        time = jax.nn.sigmoid(self.mean + self.std * _normals(key, batch, self.stratified))
        return schedule.logsnr(time)


@config
class ModeTime:
    """`t = 1 - u - s (cos^2(pi u / 2) - 1 + u)` of a uniform u, favouring mid-path for s above 0 and both ends below
    (Esser et al. 2024, arXiv 2403.03206, eq. 20)."""

    # s; beyond these t would not be monotonic in u
    scale: Annotated[float, Range(least=-1, most=2 / (math.pi - 2))] = 1.29
    stratified: bool = True  # spread the times of one batch evenly over the quantiles

    def draw(self, key: Key[Array, ""], batch: int, schedule: Schedule) -> Float[Array, " B"]:
        """One log-SNR per example."""
        u = _quantiles(key, batch, self.stratified)
        return schedule.logsnr(1 - u - self.scale * (jnp.square(jnp.cos(jnp.pi / 2 * u)) - 1 + u))


LevelSampling = UniformTime | UniformTimestep | LogNormalSigma | LogitNormalTime | ModeTime
