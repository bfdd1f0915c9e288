"""The numbers this benchmark is meant to reach, computed from a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vdm_jax.benchmark.cases import Case, parse_pattern

Rows = dict[str, dict[str, Any]]
GIB = 2**30
BOTH = "forward+backward"


@dataclasses.dataclass(frozen=True)
class Target:
    """One number: what it is, how it is meant to be, and how it is got; None where a row is missing."""

    text: str
    wanted: str
    value: Callable[[Rows], float | None]
    met: Callable[[float], bool]


def row(rows: Rows, pattern: str, kernel: str, frames: int, mode: str, side: int = 16) -> dict[str, Any] | None:
    """The measured row of a case of the CPU preset, or None."""
    case = Case(pattern=parse_pattern(pattern), kernel=kernel, frames=frames, height=side, width=side, mode=mode)
    found = rows.get(case.key)
    return found if found and found["status"] == "measured" else None


def seconds(found: dict[str, Any]) -> float:
    """Median seconds of a row."""
    return found["seconds"]["median"]


def total(found: dict[str, Any]) -> float:
    """Bytes that the compiled program of a row takes."""
    return found["memory"]["total"]


def ratio(of: Callable[[dict[str, Any]], float], over: tuple, under: tuple) -> Callable[[Rows], float | None]:
    """Quotient of a quantity in two cases, each given by the arguments of `row`."""
    def value(rows: Rows) -> float | None:
        first, second = row(rows, *over), row(rows, *under)
        return None if first is None or second is None else of(first) / of(second)

    return value


def long_peak(rows: Rows) -> float | None:
    """Peak of the whole process during 65,536 tokens, GiB; of the compiled program where the system tells no peak."""
    found = row(rows, "full", "chunked", 16, BOTH, side=64)
    return None if found is None else (found.get("process_peak") or total(found)) / GIB


def dense_is_left_out(rows: Rows) -> float | None:
    """1 when the dense kernel at 65,536 tokens was left out because it does not fit, 0 when it ran."""
    case = Case(pattern=parse_pattern("full"), kernel="xla", frames=16, height=64, width=64, mode=BOTH)
    found = rows.get(case.key)
    return None if found is None else float("does not fit" in found.get("reason", ""))


def targets() -> list[Target]:
    """The numbers of the CPU preset."""
    found = [
        Target("chunked, full attention, 65,536 tokens, 8 heads of 64, forward+backward: peak memory, GiB", "< 4",
               long_peak, lambda x: x < 4),
        Target("the same with dense logits: does not fit (1) or runs (0)", "1", dense_is_left_out, lambda x: x == 1),
        Target("chunked / dense, full attention, 4,096 tokens, forward+backward: time", "<= 1.2",
               ratio(seconds, ("full", "chunked", 16, BOTH), ("full", "xla", 16, BOTH)), lambda x: x <= 1.2),
    ]
    for mode in ("forward", BOTH):
        found += [
            Target(f"dense with a mask / gather, sparse-causal, 16 frames, {mode}: time", ">= 4",
                   ratio(seconds, ("sparse-causal", "xla", 16, mode), ("sparse-causal", "gather", 16, mode)),
                   lambda x: x >= 4),
            Target(f"causal / full, chunked, 16 frames, {mode}: time", "<= 0.6",
                   ratio(seconds, ("causal", "chunked", 16, mode), ("full", "chunked", 16, mode)), lambda x: x <= 0.6),
            Target(f"causal / full, auto, 32 frames, {mode}: time", "<= 0.6",
                   ratio(seconds, ("causal", "auto", 32, mode), ("full", "auto", 32, mode)), lambda x: x <= 0.6),
        ]
        for what, of in (("time", seconds), ("memory", total)):
            found.append(Target(
                f"sparse-causal, 32 frames / 8 frames, auto, {mode}: {what}", "<= 4.4",
                ratio(of, ("sparse-causal", "auto", 32, mode), ("sparse-causal", "auto", 8, mode)),
                lambda x: x <= 4.4))
    return found


def table(rows: Rows) -> str:
    """Markdown: every number, what was wanted and what was recorded."""
    lines = ["| | wanted | recorded | |", "|---|---:|---:|---|"]
    for target in targets():
        value = target.value(rows)
        shown, verdict = "not recorded", ""
        if value is not None:
            shown, verdict = f"{value:.2f}", "met" if target.met(value) else "missed"
        lines.append(f"| {target.text} | {target.wanted} | {shown} | {verdict} |")
    return "\n".join(lines)
