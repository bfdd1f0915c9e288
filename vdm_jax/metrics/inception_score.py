"""The Inception score (Salimans et al. 2016, arXiv 1606.03498): exp of the mean divergence of the classes a classifier
sees in a sample from the classes it sees in all of them, averaged over splits of the samples.

Sums of parts are enough for it, so any number of videos takes constant memory.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from vdm_jax.configuration import Count, Range, check_value
from vdm_jax.errors import NotFinite, UserError
from vdm_jax.metrics.frechet import Interval


@dataclasses.dataclass(frozen=True)
class ClassTotals:
    """Sums over the samples of each split: totals of parts add up to those of the whole."""

    counts: Float[np.ndarray, " splits"]
    classes: Float[np.ndarray, "splits C"]  # of the probabilities
    information: Float[np.ndarray, " splits"]  # of sum_c p_c log p_c

    @classmethod
    def of(cls, probabilities: Float[np.ndarray, "N C"], split: Int[np.ndarray, " N"], splits: int) -> ClassTotals:
        """Those of some samples. `split` is the number of the split that each belongs to."""
        p = np.asarray(probabilities, np.float64)
        if p.ndim != 2 or 0 in p.shape or not np.allclose(p.sum(1), 1, atol=1e-3) or p.min() < 0:
            raise UserError(f"probabilities of shape {list(p.shape)}; permitted: [N, C], none below 0, rows that "
                            "add up to 1")
        check_value(splits, Count, "splits")
        classes, information = np.zeros((splits, p.shape[1])), np.zeros(splits)
        np.add.at(classes, split, p)
        np.add.at(information, split, _information(p))
        return cls(np.bincount(split, minlength=splits).astype(np.float64), classes, information)

    def __add__(self, other: ClassTotals) -> ClassTotals:
        return ClassTotals(self.counts + other.counts, self.classes + other.classes,
                           self.information + other.information)

    def scores(self) -> Float[np.ndarray, " splits"]:
        """The score of each split. Raises `UserError` for a split without samples."""
        if not self.counts.all():
            raise UserError(f"{len(self.counts)} splits of {int(self.counts.sum())} samples; permitted: a sample or "
                            "more in each")
        mean = self.classes / self.counts[:, None]
        return np.exp(self.information / self.counts - _information(mean))


def split_of(numbers: Int[np.ndarray, " N"], total: int, splits: int) -> Int[np.ndarray, " N"]:
    """The split of each of `total` videos: equal runs, beginning at `i * total // splits`, as in the published code."""
    bounds = np.arange(1, splits + 1) * total // splits
    return np.searchsorted(bounds, numbers, side="right")


def softmax(logits: Float[np.ndarray, "*batch C"]) -> Float[np.ndarray, "*batch C"]:
    """Probabilities in double precision. Raises `NotFinite` for logits that are no numbers."""
    if not np.isfinite(logits).all():
        raise NotFinite("logits of a classifier are NaN or infinite; permitted: finite numbers")
    shifted = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def score_interval(probabilities: Float[np.ndarray, "M V C"], videos: int, splits: int, value: float, *,
                   resamples: int = 100, seed: int = 0) -> Interval:
    """A 95 % interval of the mean over splits from resampled videos, of which `probabilities` are all or a draw."""
    check_value(resamples, Annotated[int, Range(least=2)], "resamples")
    rng, kept = np.random.default_rng(seed), np.asarray(probabilities, np.float64)
    classes, information = kept.mean(1), _information(kept).mean(1)  # of each video
    sizes = np.diff(np.arange(splits + 1) * videos // splits)
    found = []
    for _ in range(resamples):
        weights = np.stack([np.bincount(rng.integers(len(kept), size=size), minlength=len(kept)) for size in sizes])
        found.append(ClassTotals(sizes.astype(np.float64), weights @ classes, weights @ information).scores().mean())
    return Interval.around(value, found)


def _information(p: Float[np.ndarray, "*batch C"]) -> Float[np.ndarray, "*batch"]:
    """sum_c p_c log p_c, where 0 log 0 is 0."""
    return (p * np.log(np.maximum(p, 1e-300))).sum(-1)
