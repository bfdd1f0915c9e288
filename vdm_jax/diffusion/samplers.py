"""Samplers: each config holds one step from a noise level to the next lower one.

A step is a pure function of the denoiser's estimates; `sampling.py` scans it over a grid of levels and
replaces the last result by the last estimate, so no step here deals with the end. With `h = lambda_s -
lambda_t > 0` from level t to the less noisy s, all formulas are written in h, alpha and sigma and hold for
every family.
"""

import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import NonNegative, Positive, Share, config
from vdm_jax.diffusion import predictions
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.families import VE, Family
from vdm_jax.diffusion.grids import Grid, KarrasGrid
from vdm_jax.diffusion.multistep import DEIS, LMS, DPMSolver, UniPC
from vdm_jax.diffusion.steps import Estimate, OnGrid, Outcome, Scalar, Step
from vdm_jax.diffusion.thresholds import Threshold
from vdm_jax.errors import UserError

__all__ = ["DDIM", "DDPM", "DEIS", "LMS", "PNDM", "Consistency", "DDPMLangevin", "DPMSolver", "Euler", "Heun",
           "Sampler", "Step", "StochasticDDIM", "UniPC"]


@config
class DDPM(OnGrid):
    """DDPM: draws from q(z_s | z_t, x_hat) (Ho et al. 2022, arXiv 2204.03458, eq. 3 and 4).

    The variance is interpolated in the log domain between the posterior's (gamma 0) and the forward
    transition's (gamma 1): `((1-e^-h) sigma_s^2)^(1-gamma) ((1-e^-h) sigma_t^2)^gamma`.
    """

    frame_levels: ClassVar[bool] = True

    gamma: Share = 0.0  # 0 is the smallest variance, 1 the largest

    def step(
        self, estimate: Estimate, z: Video, memory: None, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        x_hat = estimate(z, step.level)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = map(family.alpha_sigma, (step.level, step.next))
        kept, replaced = jnp.exp(step.level - step.next), -jnp.expm1(step.level - step.next)
        mean = kept * (alpha_s / alpha_t) * z + replaced * alpha_s * x_hat
        std = jnp.sqrt(replaced) * sigma_s ** (1 - self.gamma) * sigma_t**self.gamma
        return mean + std * noise, x_hat, None


@config
class DDPMLangevin(DDPM):
    """`DDPM`, and after each step one of Langevin dynamics at the level reached: `z - delta / 2 sigma eps_hat +
    sqrt(delta) sigma noise`.

    The predictor-corrector of Ho et al. 2022, arXiv 2204.03458, appendix B; two evaluations a step, one on the last.
    """

    frame_levels: ClassVar[bool] = False

    delta: Positive = 0.1  # size of the Langevin step

    noises: ClassVar[int] = 2

    def evaluations(self, steps: int) -> int:
        """How often the denoiser is called in all."""
        return 2 * steps - 1

    def step(
        self, estimate: Estimate, z: Video, memory: None, step: Step, family: Family, noise: Video,
        correction: Video,
    ) -> Outcome:
        """z at the next level, given z at this one."""
        z, x_hat, _ = super().step(estimate, z, memory, step, family, noise)
        alpha, sigma = family.alpha_sigma(step.next)

        def correct() -> Video:
            eps = (z - alpha * estimate(z, step.next)) / sigma
            return z - self.delta / 2 * sigma * eps + math.sqrt(self.delta) * sigma * correction

        # The last result is discarded, and so is the evaluation it would cost.
        return jax.lax.cond(step.last, lambda: z, correct), x_hat, None


@config
class DDIM(OnGrid):
    """`z_s = alpha_s x_hat + sqrt(sigma_s^2 - var) eps_hat + sqrt(var) noise`.

    var = eta^2 (1 - e^-h) sigma_s^2 (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16). eta 0 is
    deterministic, eta 1 equals `DDPM(gamma=0)`. eta 0 is also Euler's method for z / alpha over sigma / alpha,
    whatever the family, and eta 1 its ancestral form: see `Euler`.

    `threshold` bounds x_hat and leaves eps_hat as it was, which is what diffusers' DDIM does. A threshold on the
    denoiser (`Sampling.threshold`) changes both.
    """

    frame_levels: ClassVar[bool] = True

    eta: Share = 0.0  # fraction of the posterior's standard deviation that is drawn anew
    threshold: Threshold | None = None  # bounds x_hat alone; None: no bounds

    def step(
        self, estimate: Estimate, z: Video, memory: None, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        x_hat = estimate(z, step.level)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = map(family.alpha_sigma, (step.level, step.next))
        drawn = -(self.eta**2) * jnp.expm1(step.level - step.next)  # fraction of sigma_s^2
        ratio = sigma_s * jnp.sqrt(1 - drawn) / sigma_t
        if self.threshold is None:
            z = ratio * z + (alpha_s - ratio * alpha_t) * x_hat
        else:
            direction = ratio * (z - alpha_t * x_hat)
            x_hat = self.threshold(x_hat)
            z = alpha_s * x_hat + direction
        return (z + sigma_s * jnp.sqrt(drawn) * noise if self.eta else z), x_hat, None


@config
class Euler(DDIM):
    """Euler's method for `z / alpha` over `sigma / alpha` on the grid of Karras et al. 2022, arXiv 2206.00364, eq. 5.

    It is the step of `DDIM`: with eta 1 it is the sampler that others call Euler ancestral.
    """

    grid: Grid | None = KarrasGrid()


@config
class Heun(OnGrid):
    """Heun's second-order method, with churn (Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2).

    Two evaluations a step, one on the last. It integrates the velocity of the schedule's family along the
    family's own coordinate (`families.py`): for EDM that is the published dz/dsigma, for variance-preserving
    schedules v over the angle, for flows the flow velocity over time, all of which stay bounded at both ends
    of the schedule. Churn acts on sigma / alpha, which is the published sigma for every family.

    `along="sigma"` integrates the published dz/dsigma of `z / alpha` over `sigma / alpha` whatever the family, as
    others sample models of variance-preserving schedules on Karras sigmas.
    """

    along: Literal["family", "sigma"] = "family"  # the curve whose velocity is integrated
    churn: NonNegative = 0.0  # S_churn: a step first multiplies sigma / alpha by 1 + churn / steps, at most by sqrt(2)
    churn_min: NonNegative = 0.0  # S_tmin: lowest sigma / alpha at which noise is added
    churn_max: NonNegative | None = None  # S_tmax: highest sigma / alpha at which noise is added; None: no limit
    churn_noise: Positive = 1.0  # S_noise: standard deviation of the added noise, relative to the exact one

    def evaluations(self, steps: int) -> int:
        """How often the denoiser is called in all."""
        return 2 * steps - 1

    def __post_init__(self):
        if self.churn_max is not None and self.churn_max < self.churn_min:
            raise UserError(f"Heun.churn_min={self.churn_min} with churn_max={self.churn_max}; permitted: churn_min <= "
                            "churn_max")

    def step(
        self, estimate: Estimate, z: Video, memory: None, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        if self.along == "sigma" and family is not VE:
            def alpha(level: Scalar) -> Scalar:
                return family.alpha_sigma(level)[0]

            z, x_hat, _ = self._step(lambda x, level: estimate(alpha(level) * x, level), z / alpha(step.level), step,
                                     VE, noise)
            return alpha(step.next) * z, x_hat, None
        return self._step(estimate, z, step, family, noise)

    def _step(self, estimate: Estimate, z: Video, step: Step, family: Family, noise: Video) -> Outcome:
        level = step.level
        if self.churn:
            z, level = self._add_noise(z, step, family, noise)
        x_hat = estimate(z, level)
        velocity = _velocity(x_hat, z, level, family)
        distance = family.coordinate(step.next) - family.coordinate(level)

        def correct() -> Video:
            predicted = z + distance * velocity
            end_velocity = _velocity(estimate(predicted, step.next), predicted, step.next, family)
            return z + distance * (velocity + end_velocity) / 2

        # The last result is discarded, and so is the evaluation it would cost.
        return jax.lax.cond(step.last, lambda: z, correct), x_hat, None

    def _add_noise(self, z: Video, step: Step, family: Family, noise: Video) -> tuple[Video, Scalar]:
        """z carried to a slightly noisier level by the forward process, and that level."""
        sigma = jnp.exp(-step.level / 2)
        inside = (sigma >= self.churn_min) & (
            sigma <= (math.inf if self.churn_max is None else self.churn_max)
        )
        growth = jnp.where(inside, jnp.minimum(self.churn / step.of_grid, math.sqrt(2) - 1), 0.0)
        level = step.level - 2 * jnp.log1p(growth)
        alpha_t, _ = family.alpha_sigma(step.level)
        alpha_up, sigma_up = family.alpha_sigma(level)
        added = sigma_up * jnp.sqrt(-jnp.expm1(level - step.level))
        return (alpha_up / alpha_t) * z + self.churn_noise * added * noise, level


# Weights of the noise estimates of this step and the ones before it, by the number of steps before: Adams-Bashforth.
_ADAMS_BASHFORTH = ((1, 0, 0, 0), (3 / 2, -1 / 2, 0, 0), (23 / 12, -16 / 12, 5 / 12, 0),
                    (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@config
class PNDM(OnGrid):
    """Linear multistep method in DDIM's steps (Liu et al. 2022, arXiv 2202.09778, eq. 9 and 12).

    eps_hat is extrapolated from up to four steps, for steps of equal length in the schedule's timesteps. There are no
    Runge-Kutta steps to begin with: as in the code of latent diffusion ("PLMS"), the first step averages eps_hat at its
    two ends, which costs one more evaluation, and the order grows from step to step.

    `extrapolate="v"` extrapolates v instead, which is another direction from z at each step: what diffusers does with
    networks that predict it.
    """

    extrapolate: Literal["eps", "v"] = "eps"

    def evaluations(self, steps: int) -> int:
        """How often the denoiser is called in all."""
        return steps + 1 if steps > 1 else 1

    def memory(self, z: Video) -> Float[Array, "3 ..."]:
        """eps_hat (or v_hat) of the three steps before, the last first; any values where there is none."""
        return jnp.zeros((3, *z.shape), z.dtype)

    def step(
        self, estimate: Estimate, z: Video, memory: Array, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = map(family.alpha_sigma, (step.level, step.next))
        x_hat = estimate(z, step.level)
        told = self._direction(x_hat, z, alpha_t, sigma_t)

        def moved(direction: Video) -> Video:
            x, eps = predictions.clean_and_noise(self.extrapolate, direction, z, alpha_t, sigma_t)
            return alpha_s * x + sigma_s * eps

        def averaged() -> Video:
            end = moved(told)
            return (told + self._direction(estimate(end, step.next), end, alpha_s, sigma_s)) / 2

        def extrapolated() -> Video:
            weights = jnp.asarray(_ADAMS_BASHFORTH)[jnp.minimum(step.index, 3)]
            return weights[0] * told + jnp.tensordot(weights[1:], memory, 1)

        slope = jax.lax.cond((step.index == 0) & (step.count > 1) & ~step.last, averaged, extrapolated)
        return moved(slope), x_hat, jnp.concatenate([told[None], memory[:2]])

    def _direction(self, x_hat: Video, z: Video, alpha: Scalar, sigma: Scalar) -> Video:
        """What is extrapolated, of an estimate at z."""
        return predictions.convert("x", x_hat, z, alpha, sigma)[self.extrapolate]


@config
class Consistency(OnGrid):
    """`z_s = alpha_s x_hat + sigma_s noise`: each step's estimate, with all noise drawn anew.

    Multistep sampling of consistency models (Song et al. 2023, arXiv 2303.01469, algorithm 1), latent ones among them
    (Luo et al. 2023, arXiv 2310.04378), whose estimate `consistency.py` makes of a network's.
    """

    frame_levels: ClassVar[bool] = True

    def step(
        self, estimate: Estimate, z: Video, memory: None, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        x_hat = estimate(z, step.level)
        alpha_s, sigma_s = family.alpha_sigma(step.next)
        return alpha_s * x_hat + sigma_s * noise, x_hat, None


@config
class StochasticDDIM(OnGrid):
    """A deterministic step of `DDIM` over two steps of the grid, then noise for one step back.

    The N-step stochastic sampler of distilled models (Meng et al. 2022, arXiv 2210.03142; Ho et al. 2022, arXiv
    2210.02303, section 2.7): from t to s two steps on, `z_s = alpha_s x_hat + sigma_s eps_hat`, then to k between
    them `z_k = alpha_k / alpha_s z_s + sqrt(1 - e^(lambda_k - lambda_s)) sigma_k noise`. The step before the last goes
    to the estimate itself and back, the last one ends on its estimate without noise.
    """

    def step(
        self, estimate: Estimate, z: Video, memory: None, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        x_hat = estimate(z, step.level)
        (alpha_t, sigma_t), (alpha_s, sigma_s), (alpha_k, sigma_k) = map(
            family.alpha_sigma, (step.level, step.after, step.next))
        far = alpha_s * x_hat + sigma_s / sigma_t * (z - alpha_t * x_hat)
        drawn = jnp.sqrt(-jnp.expm1(step.next - step.after)) * sigma_k
        return alpha_k / alpha_s * far + drawn * noise, x_hat, None


def _velocity(x_hat: Video, z: Video, level: Scalar, family: Family) -> Video:
    return predictions.convert("x", x_hat, z, *family.alpha_sigma(level))[family.velocity]


Sampler = (DDPM | DDPMLangevin | DDIM | Euler | DPMSolver | Heun | PNDM | Consistency | StochasticDDIM | UniPC | DEIS
           | LMS)
