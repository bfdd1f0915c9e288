"""Distances of two sets of feature vectors: Frechet (Heusel et al. 2017, arXiv 1706.08500) and kernel (Binkowski et al.
2018, arXiv 1801.01401), and how far they would move if other videos had been drawn.

Everything here is NumPy in double precision on the host: features are few against the pixels they come from, and single
precision shows in the matrix square root.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int

from vdm_jax.configuration import Range, check_value
from vdm_jax.errors import NotFinite, UserError

# What the sum of outer products is divided by. Published code differs, and scores of few videos with it.
Divisor = Literal["n-1", "n"]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of feature vectors: what the Frechet distance needs of them. Moments of parts, made by
    different processes or at different times, add up to those of the whole: `moments + moments`."""

    count: int
    mean: Float[np.ndarray, " D"]
    scatter: Float[np.ndarray, "D D"]  # sum of the outer products of deviations from the mean

    @classmethod
    def of(cls, features: Float[np.ndarray, "N D"]) -> Moments:
        """The moments of features, one row each. Raises `UserError` for other shapes and for values not finite."""
        features = checked(features)
        mean = features.mean(0)
        centred = features - mean
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is named when it is used
            return cls(len(features), mean, centred.T @ centred)

    @classmethod
    def weighted(cls, features: Float[np.ndarray, "N D"], counts: Int[np.ndarray, " N"]) -> Moments:
        """The moments of features that stand there `counts` times each."""
        features, total = checked(features), int(counts.sum())
        mean = counts @ features / total
        centred = features - mean
        return cls(total, mean, (centred * counts[:, None]).T @ centred)

    def __add__(self, other: Moments) -> Moments:
        if self.mean.shape != other.mean.shape:
            raise UserError(f"moments of {len(self.mean)} and {len(other.mean)} features; permitted: the same features")
        count, apart = self.count + other.count, other.mean - self.mean
        # Chan, Golub and LeVeque 1979: no sums of squares, which would cancel where the mean is large.
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    def covariance(self, divisor: Divisor = "n-1") -> Float[np.ndarray, "D D"]:
        """The covariance. Raises `UserError` for fewer than two vectors."""
        check_value(divisor, Divisor, "divisor")
        if self.count < 2:
            raise UserError(f"a covariance of {self.count} vectors; permitted: 2 or more")
        return self.scatter / (self.count - 1 if divisor == "n-1" else self.count)


def checked(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Features in double precision. Raises `UserError` for other shapes, none at all, and values not finite."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(f"features of shape {list(features.shape)}; permitted: [N, D], none empty")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise UserError(f"features of video {row} are not finite; permitted: finite numbers")
    return features


def frechet_distance(one: Moments, other: Moments, divisor: Divisor = "n-1") -> float:
    """Squared 2-Wasserstein distance of the two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    With symmetric roots R1, R2 of the covariances, by eigen-decomposition, the trace of (C1 C2)^(1/2) is the sum of the
    singular values of R1 R2. Nothing is inverted and no product of covariances is formed, so covariances without full
    rank (fewer videos than features) are no special case, and features that are all the same are a point.

    Raises `UserError` for other features and fewer than two vectors a side, `NotFinite` for features too large.
    """
    if one.mean.shape != other.mean.shape:
        raise UserError(f"moments of {len(one.mean)} and {len(other.mean)} features; permitted: the same features")
    covariances = [moments.covariance(divisor) for moments in (one, other)]
    apart = one.mean - other.mean
    with np.errstate(over="ignore", invalid="ignore"):
        first, second = (_root(finite("a covariance", covariance)) for covariance in covariances)
        overlap = np.linalg.svd(finite("a product of covariances", first @ second), compute_uv=False).sum()
        distance = apart @ apart + sum(np.trace(covariance) for covariance in covariances) - 2 * overlap
    return max(0.0, float(finite("a Frechet distance", distance)))  # rounding leaves that of equal sets below zero


def finite(what: str, value: np.ndarray | float) -> np.ndarray | float:
    """The value. Raises `NotFinite` where part of it is NaN or infinite."""
    if not np.isfinite(value).all():
        raise NotFinite(f"{what} is NaN or infinite; permitted: features of a size whose squares are numbers")
    return value


def _root(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T  # rounding leaves zeros a little below zero


def kernel_distance(
    one: Float[np.ndarray, "N D"], other: Float[np.ndarray, "M D"], *, degree: int = 3, block: int = 1024,
) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / D + 1)^degree; it can be
    negative. KVD is this on the features of FVD (Unterthiner et al. 2018, arXiv 1812.01717).

    `block` rows of a kernel matrix are in memory at a time. Raises `UserError` for fewer than two vectors a side,
    `NotFinite` for features too large.
    """
    one, other = checked(one), checked(other)
    if one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise UserError(f"kernel distance of features {list(one.shape)} and {list(other.shape)}; permitted: as many "
                        "features, 2 or more vectors a side")

    def total(x: np.ndarray, y: np.ndarray) -> float:
        return sum(float(((x[i : i + block] @ y.T / x.shape[1] + 1) ** degree).sum()) for i in range(0, len(x), block))

    def within(x: np.ndarray) -> float:
        itself = float((((x * x).sum(1) / x.shape[1] + 1) ** degree).sum())
        return (total(x, x) - itself) / (len(x) * (len(x) - 1))

    with np.errstate(over="ignore", invalid="ignore"):
        return finite("a kernel distance",
                      within(one) + within(other) - 2 * total(one, other) / (len(one) * len(other)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """Where the score would fall with other videos drawn from the same two sources, as many as here. It says nothing of
    the bias that every score of so many videos shares. Raises `NotFinite` for bounds that are no numbers."""

    low: float
    high: float
    level: float  # share of draws within
    resamples: int

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise NotFinite(f"a 95 % interval is {self.low} to {self.high}; permitted: finite bounds")

    @classmethod
    def around(cls, value: float, resampled: Sequence[float]) -> Interval:
        """1.96 standard deviations of resampled scores to either side of the score."""
        with np.errstate(over="ignore", invalid="ignore"):
            spread = 1.96 * float(np.std(resampled, ddof=1))
        return cls(low=value - spread, high=value + spread, level=0.95, resamples=len(resampled))


def bootstrap(
    distance: Callable[[np.ndarray, np.ndarray], float], real: Float[np.ndarray, "N D"],
    generated: Float[np.ndarray, "M D"], *, resamples: int = 100, seed: int = 0,
) -> Interval:
    """A 95 % interval of `distance(real, generated)` from resampled videos of both sides (Efron 1979).

    It is the score, 1.96 standard deviations of the resampled scores to either side: resampled sets repeat videos,
    which moves all their distances up, so that quantiles of theirs would miss the score.
    """
    check_value(resamples, Annotated[int, Range(least=2)], "resamples")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        rows, columns = (rng.integers(len(side), size=len(side)) for side in (real, generated))
        values.append(distance(real[rows], generated[columns]))
    return Interval.around(distance(real, generated), values)


def frechet_interval(
    real: Sequence[Float[np.ndarray, "N V D"]], generated: Sequence[Float[np.ndarray, "M V D"]], value: float,
    divisor: Divisor = "n-1", *, videos: tuple[int, int] | None = None, resamples: int = 100, seed: int = 0,
) -> Interval:
    """The same for `value`, the Frechet distance averaged over places in the videos (one, unless each block or frame is
    compared for itself). Features are one array for each place; videos are what is resampled, at all places alike.

    `videos` are the numbers of real and of generated ones where only a draw of them is at hand: as many are then
    resampled from the draw, so that the interval is that of all.
    """
    check_value(resamples, Annotated[int, Range(least=2)], "resamples")
    rng, sides, values = np.random.default_rng(seed), (real, generated), []
    videos = (len(real[0]), len(generated[0])) if videos is None else videos
    for _ in range(resamples):
        counts = [np.bincount(rng.integers(len(side[0]), size=count), minlength=len(side[0]))
                  for side, count in zip(sides, videos, strict=True)]
        moments = ([_resampled(place, count) for place in side] for side, count in zip(sides, counts, strict=True))
        values.append(np.mean([frechet_distance(*pair, divisor) for pair in zip(*moments, strict=True)]))
    return Interval.around(value, values)


def _resampled(features: Float[np.ndarray, "N V D"], counts: Int[np.ndarray, " N"]) -> Moments:
    chosen = features[counts > 0]
    return Moments.weighted(chosen.reshape(-1, chosen.shape[2]), counts[counts > 0].repeat(chosen.shape[1]))
