"""Multistep samplers: DPM-Solver, UniPC, DEIS and LMS, which extrapolate from estimates of the steps before.

With `lambda = log(alpha / sigma)`, half the log-SNR, and `h = lambda_s - lambda_t` from level t to the less noisy s,
the integrals of a polynomial in lambda have the weights `phi_k(x) = sum_n x^n / (n + k)!`. The order grows from step to
step up to the one asked for. `sampling.py` replaces the result of the last step by its estimate.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.configuration import CountOrZero, Range, config
from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.families import Family
from vdm_jax.diffusion.steps import Estimate, OnGrid, Outcome, Scalar, Step
from vdm_jax.errors import UserError

FEW = 15  # steps; with fewer than these the last ones are of lower order, in published code

History = tuple[tuple[Video, ...], tuple[Scalar, ...]]  # estimates and levels of the steps before, the latest first


def phi(k: int, x: Scalar) -> Scalar:
    """`sum_n x^n / (n + k)!`: (e^x - 1) / x for k = 1; without cancellation near 0."""
    small = jnp.abs(x) < 1
    near, away = jnp.where(small, x, 0.0), jnp.where(small, 1.0, x)
    series = sum(near**n * (1 / math.factorial(n + k)) for n in range(12))
    direct = jnp.expm1(away) / away
    for j in range(2, k + 1):
        direct = (direct - 1 / math.factorial(j - 1)) / away
    return jnp.where(small, series, direct)


def solved(nodes: Sequence[Scalar | float], moments: Sequence[Scalar | float]) -> list[Scalar | float]:
    """The weights w with `sum_k w_k nodes_k^i = moments_i`, for up to three nodes."""
    found = []
    for k, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != k]
        if len(others) == 2:
            above = moments[2] - (others[0] + others[1]) * moments[1] + others[0] * others[1] * moments[0]
        else:
            above = moments[1] - others[0] * moments[0] if others else moments[0]
        found.append(above / math.prod(node - other for other in others))
    return found


def _chosen(rows: Sequence[Sequence[Scalar | float]], order: Int[Array, ""]) -> Float[Array, " N"]:
    """The weights of one order, of a row for each; missing ones are 0."""
    width = max(map(len, rows))
    return jnp.stack([jnp.stack([jnp.asarray(w, jnp.float32) for w in (*row, *[0.0] * (width - len(row)))])
                      for row in rows])[order - 1]


@config
class _Multistep(OnGrid):
    """A sampler that remembers."""

    order: Annotated[int, Range(least=1, most=3)] = 2  # highest order, which is the number of estimates in a step

    def memory(self, z: Video) -> History:
        """Estimates of the steps before and their levels; any values where there is none."""
        before = range(self.order - 1)
        return tuple(jnp.zeros_like(z) for _ in before), tuple(jnp.zeros((), jnp.float32) for _ in before)

    def _remembered(self, value: Video, level: Scalar, memory: History, count: int) -> History:
        values, levels = memory
        return (value, *values)[:count], (jnp.asarray(level, jnp.float32), *levels)[:count]

    def _order(self, step: Step, levels: Sequence[Scalar], few: bool = False) -> Int[Array, ""]:
        """The order of a step; `few` lowers it at the end of few steps. Steps of no length do not count."""
        order = jnp.minimum(self.order, step.index + 1)
        for n, (later, earlier) in enumerate(zip((step.level, *levels), levels, strict=False)):
            order = jnp.where(later == earlier, jnp.minimum(order, n + 1), order)
        return jnp.where(step.of_grid < FEW, jnp.minimum(order, step.count - step.index), order) if few else order


@config
class DPMSolver(_Multistep):
    """DPM-Solver and DPM-Solver++, multistep, of order 1 to 3, along the ODE or the SDE.

    Lu et al. 2022, arXiv 2206.00927 (`predict="eps"`) and arXiv 2211.01095 (`predict="x"`, algorithm 2 for order 2).
    One evaluation a step. The default is DPM-Solver++ (2M); `DPMSolver(sde=True)` is SDE-DPM-Solver++ (2M).
    """

    predict: Literal["x", "eps"] = "x"  # what is extrapolated
    sde: bool = False  # draw noise at every step
    # Where the second order evaluates the slope; the third order has one form
    solver: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True  # of fewer than 15 steps, the last two are of order 2 and 1
    euler_at_final: bool = False  # the last step is of order 1
    # Weight of the second difference with sde and order 3; that of diffusers is smaller by one
    third: Literal["exact", "diffusers"] = "exact"

    def __post_init__(self):
        super().__post_init__()
        if self.sde and self.predict == "eps" and self.order == 3:
            raise UserError("DPMSolver.order=3 with sde=True, predict='eps'; permitted: 1, 2")

    def step(
        self, estimate: Estimate, z: Video, memory: History, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        x_hat = estimate(z, step.level)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = map(family.alpha_sigma, (step.level, step.next))
        value = x_hat if self.predict == "x" else (z - alpha_t * x_hat) / sigma_t
        h = (step.next - step.level) / 2
        order = self._order(step, memory[1], self.lower_order_final)
        if self.euler_at_final:
            order = jnp.where(step.index == step.count - 1, 1, order)
        weights, (first, second) = self._weights(h, order), self._differences(value, memory, step, h, order)
        change = weights[0] * value + weights[1] * first + weights[2] * second
        if self.predict == "x":
            z = sigma_s / sigma_t * (jnp.exp(-h) if self.sde else 1.0) * z + alpha_s * change
        else:
            z = alpha_s / alpha_t * z - sigma_s * change
        if self.sde:
            z = z + sigma_s * jnp.sqrt(-jnp.expm1(-2 * h) if self.predict == "x" else jnp.expm1(2 * h)) * noise
        return z, x_hat, self._remembered(value, step.level, memory, self.order - 1)

    def _weights(self, h: Scalar, order: Int[Array, ""]) -> tuple[Scalar, Scalar, Scalar]:
        """Of the estimate and its first and second differences."""
        scale = 2 if self.sde else 1
        x = -scale * h if self.predict == "x" else h  # the SDE's noise part is the ODE's, twice
        plain, heun, second = (scale * h * phi(k, x) for k in (1, 2, 3))
        if self.sde and self.third == "diffusers":
            second = second - 1
        middle = heun if self.solver == "heun" else jnp.where(order == 3, heun, plain / 2)
        return plain, middle, second

    def _differences(
        self, value: Video, memory: History, step: Step, h: Scalar, order: Int[Array, ""]
    ) -> tuple[Video, Video]:
        """First and second differences over a step of length h; 0 beyond the order."""
        values, levels = memory
        if self.order == 1:
            return jnp.zeros_like(value), jnp.zeros_like(value)
        before = (step.level - levels[0]) / 2
        latest = jnp.where(order > 1, h / before, 0.0) * (value - values[0])
        if self.order == 2:
            return latest, jnp.zeros_like(value)
        earlier = (levels[0] - levels[1]) / 2
        change = latest - jnp.where(order > 2, h / earlier, 0.0) * (values[0] - values[1])
        share = jnp.where(order > 2, 1 / (before + earlier), 0.0)
        return latest + before * share * change, h * share * change


@config
class UniPC(_Multistep):
    """Predictor and corrector of one order, with one evaluation a step (Zhao et al. 2023, arXiv 2302.04867).

    The corrector improves z by the estimate that is made at the predicted z; the estimate is not made again.
    """

    predict: Literal["x", "eps"] = "x"  # what is extrapolated
    variant: Literal["bh1", "bh2"] = "bh2"  # B(h) = h, or e^h - 1
    lower_order_final: bool = True  # the last steps are of order 3, 2 and 1
    uncorrected: tuple[CountOrZero, ...] = ()  # numbers of the steps, from 0, whose result is not corrected

    def memory(self, z: Video) -> tuple[History, Video, Int[Array, ""]]:
        """Estimates and levels of the steps before, z before the last step, and its order; any values at first."""
        before = range(self.order)
        history = tuple(jnp.zeros_like(z) for _ in before), tuple(jnp.zeros((), jnp.float32) for _ in before)
        return history, jnp.zeros_like(z), jnp.ones((), jnp.int32)

    def step(
        self, estimate: Estimate, z: Video, memory: tuple[History, Video, Array], step: Step, family: Family,
        noise: Video,
    ) -> Outcome:
        """z at the next level, given z at this one."""
        history, before, order = memory
        x_hat = estimate(z, step.level)
        alpha_t, sigma_t = family.alpha_sigma(step.level)
        value = x_hat if self.predict == "x" else (z - alpha_t * x_hat) / sigma_t
        corrected = self._moved(before, history, step.level, order, family, value)
        number = step.index + (step.of_grid - step.count)
        plain = jnp.isin(number - 1, jnp.asarray(self.uncorrected or (-1,)))
        z = jnp.where((step.index == 0) | plain, z, corrected)
        order = self._order(step, history[1])
        if self.lower_order_final:
            order = jnp.minimum(order, step.count - step.index)
        history = self._remembered(value, step.level, history, self.order)
        order = jnp.asarray(order, jnp.int32)
        return self._moved(z, history, step.next, order, family), x_hat, (history, z, order)

    def _moved(
        self, z: Video, history: History, level: Scalar, order: Int[Array, ""], family: Family,
        value: Video | None = None,
    ) -> Video:
        """z from the last level of `history` to `level`; corrected where the estimate there is given."""
        (first, *values), (start, *starts) = history
        (alpha_t, sigma_t), (alpha_s, sigma_s) = map(family.alpha_sigma, (start, level))
        h = (level - start) / 2
        x = -h if self.predict == "x" else h
        unit = phi(1, x) if self.variant == "bh2" else 1.0  # B(h) / h
        moments = [phi(k + 1, x) * math.factorial(k) / unit for k in (1, 2, 3)]
        nodes = [(earlier - start) / 2 / h for earlier in starts]
        if value is None:
            rows = [[], [0.5], solved(nodes[:2], moments)][: self.order] if self.order > 1 else [[0.0]]
            others = values
        else:
            rows = [[0.5]]
            for n in range(1, self.order):  # the estimate at the end comes first
                rows.append(solved([1.0, *nodes[:n]], moments))
            nodes, others = [1.0, *nodes], [value, *values]
        weights = _chosen(rows, order)
        change = sum(jnp.where(order > n - (value is not None) + 1, weights[n] / nodes[n], 0.0) * (other - first)
                     for n, other in enumerate(others[: weights.shape[0]]))
        total = x * phi(1, x) * first + x * unit * change
        if self.predict == "x":
            return sigma_s / sigma_t * z - alpha_s * total
        return alpha_s / alpha_t * z - sigma_s * total


@config
class DEIS(_Multistep):
    """Polynomials of eps_hat in log(sigma / alpha), integrated exactly (Zhang & Chen 2023, arXiv 2204.13902).
    """

    lower_order_final: bool = True  # of fewer than 15 steps, the last two are of order 2 and 1

    def step(
        self, estimate: Estimate, z: Video, memory: History, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        x_hat = estimate(z, step.level)
        (alpha_t, sigma_t), (alpha_s, _) = map(family.alpha_sigma, (step.level, step.next))
        eps, (values, levels) = (z - alpha_t * x_hat) / sigma_t, memory
        length = (step.level - step.next) / 2  # of the step in log(sigma / alpha)
        moments = [length ** (n + 1) * math.factorial(n) * jnp.exp(length) * phi(n + 1, -length) for n in range(3)]
        nodes = [0.0, *((step.level - level) / 2 for level in levels)]
        weights = _chosen([solved(nodes[: n + 1], moments) for n in range(self.order)],
                          self._order(step, levels, self.lower_order_final))
        change = sum(w * value for w, value in zip(weights, (eps, *values), strict=True))
        z = alpha_s * (z / alpha_t + sigma_t / alpha_t * change)
        return z, x_hat, self._remembered(eps, step.level, memory, self.order - 1)


@config
class LMS(_Multistep):
    """Linear multistep method: polynomials of eps_hat in sigma / alpha, integrated exactly (Adams-Bashforth for any
    steps; the "LMS" sampler of k-diffusion, whose order is 4)."""

    order: Annotated[int, Range(least=1, most=4)] = 4

    def step(
        self, estimate: Estimate, z: Video, memory: History, step: Step, family: Family, noise: Video
    ) -> Outcome:
        """z at the next level, given z at this one."""
        x_hat = estimate(z, step.level)
        (alpha_t, sigma_t), (alpha_s, _) = map(family.alpha_sigma, (step.level, step.next))
        eps, (values, levels) = (z - alpha_t * x_hat) / sigma_t, memory
        end = jnp.exp((step.level - step.next) / 2)  # in units of sigma / alpha at this level
        nodes = [1.0, *(jnp.exp((step.level - level) / 2) for level in levels)]
        weights = _chosen([_integrals(nodes[: n + 1], 1.0, end) for n in range(self.order)],
                          self._order(step, levels))
        change = sum(w * value for w, value in zip(weights, (eps, *values), strict=True))
        z = alpha_s * (z / alpha_t + sigma_t / alpha_t * change)
        return z, x_hat, self._remembered(eps, step.level, memory, self.order - 1)


def _integrals(nodes: Sequence[Scalar | float], start: float, end: Scalar | float) -> list[Scalar | float]:
    """Integrals of the Lagrange polynomials of up to four nodes: two Gauss-Legendre points are exact."""
    middle, half = (start + end) / 2, (end - start) / 2
    points = [middle + sign * half / math.sqrt(3) for sign in (-1, 1)]
    return [half * sum(math.prod((at - other) / (node - other) for j, other in enumerate(nodes) if j != k)
                       for at in points) for k, node in enumerate(nodes)]
