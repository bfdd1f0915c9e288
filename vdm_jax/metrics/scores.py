"""A score and what it was made with. Scores of one metric are comparable when they were made alike, and only then."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vdm_jax.errors import NotFinite, UserError
from vdm_jax.metrics.frechet import Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One number and everything needed to read it. One that is NaN or infinite is written like the others, so that they
    are not lost; commands end with `require_finite`."""

    metric: str
    value: float
    better: str  # "lower", "higher", or in words where neither is
    conditions: Mapping[str, Any]  # JSON data; all of it must be equal where scores are compared
    protocol: str = ""  # a named one, where there are several
    deviations: tuple[str, ...] = ()  # from the protocol
    detector: str = ""  # of trained metrics: name and SHA-256 of the weights
    detector_sha256: str = ""
    interval: Interval | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # JSON data that explains the number

    @property
    def label(self) -> str:
        """Metric and protocol; a score that is off its protocol says so here."""
        name = f"{self.metric} ({self.protocol})" if self.protocol else self.metric
        return f"{name}, OFF PROTOCOL" if self.deviations else name

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {"label": self.label, **dataclasses.asdict(self), "deviations": list(self.deviations)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Score:
        """The score that `to_dict` gave, also through JSON."""
        fields = {name: value for name, value in data.items() if name != "label"}
        fields |= {"value": float(fields["value"]), "deviations": tuple(fields["deviations"])}
        if fields["interval"] is not None:
            fields["interval"] = Interval(**fields["interval"])
        return cls(**fields)

    def __str__(self) -> str:
        interval = f" [{self.interval.low:.4g}, {self.interval.high:.4g}]" if self.interval else ""
        return f"{self.label}: {self.value:.4g}{interval}"


def require_comparable(one: Score, other: Score) -> None:
    """Raises `UserError` naming the first thing in which two scores were made differently."""
    for name in ("metric", "protocol", "detector", "detector_sha256"):
        a, b = getattr(one, name), getattr(other, name)
        if a != b:
            raise _not_comparable(one, other, name, a, b)
    for name in {**one.conditions, **other.conditions}:
        a, b = one.conditions.get(name), other.conditions.get(name)
        if a != b:
            raise _not_comparable(one, other, name, a, b)


def _not_comparable(one: Score, other: Score, name: str, a: Any, b: Any) -> UserError:
    return UserError(f"{one.label} and {other.label} cannot be compared: {name} is {a!r} and {b!r}; permitted: scores "
                     "made alike")


def require_finite(scores: Mapping[str, float], where: str) -> None:
    """Raises `NotFinite` naming the scores that are NaN or infinite, and where they are written."""
    wrong = [f"{name} is {value}" for name, value in scores.items() if not math.isfinite(value)]
    if wrong:
        raise NotFinite(f"{', '.join(wrong)}; all scores are in {where}")


def table(scores: Sequence[Score]) -> str:
    """Markdown: a row per score, then the conditions and deviations of each."""
    lines = ["| metric | score | 95 % interval | better |", "|---|---:|---|---|"]
    for score in scores:
        interval = f"{score.interval.low:.4g} to {score.interval.high:.4g}" if score.interval else "-"
        lines.append(f"| {score.label} | {score.value:.4g} | {interval} | {score.better} |")
    lines.append("")
    for score in scores:
        detector = [f"detector {score.detector} (SHA-256 {score.detector_sha256})"] if score.detector else []
        lines.append(f"- {score.label}: " + ", ".join(
            [*(f"{name} {value}" for name, value in score.conditions.items()), *detector]))
        lines += [f"  - off protocol: {text}" for text in score.deviations]
    return "\n".join([*lines, ""])
