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
    """Peak of the whole process during 65,536 tokens, GiB; of the compiled program where the system reports no peak."""
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


def pod_targets() -> list[Target]:
    """The numbers of the presets for slices of v5p, over their rows under `pod_rows`' keys."""
    found = [Target("full attention by ring, 1,048,576 tokens, 16 heads of 128, forward+backward, 64 chips: memory per "
                    "chip, GiB", f"<= {V5P_GIB}", lambda rows: _of(rows, 64, "full", "ring", total, 1 / GIB),
                    lambda x: x <= V5P_GIB)]
    for context, few, many in (("ring", 4, 16), ("ring", 16, 64), ("ulysses", 4, 16)):  # 16 heads: no Ulysses over 64
        found.append(Target(
            f"full attention by {context}, {many} chips / {few} chips: temporary memory per chip, times {many // few}",
            "<= 1.3", _quotient("full", context, few, many, temporary, many / few), lambda x: x <= 1.3))
    found.append(Target("sparse-causal attention by halo, 64 chips / 4 chips: bytes moved per chip", "<= 1.05",
                        _quotient("sparse-causal", "halo", 4, 64, sent, 1.0), lambda x: x <= 1.05))
    return found


V5P_GIB = 95.7  # of a chip, as the compiler counts


def pod_rows(records: dict[int, Rows]) -> Rows:
    """Rows of records of several slices, by number of chips, under keys that begin with that number."""
    return {f"{chips} {key}": found for chips, rows in records.items() for key, found in rows.items()}


def temporary(found: dict[str, Any]) -> float:
    """Bytes of temporaries of the compiled program, per device."""
    return found["memory"]["temporaries"]


def sent(found: dict[str, Any]) -> float:
    """Bytes that a device sends or receives in a call."""
    return sum(kind["bytes"] for kind in found["collectives"].values())


def _of(rows: Rows, chips: int, pattern: str, context: str, of: Callable[[dict[str, Any]], float], factor: float,
        ) -> float | None:
    case = Case(pattern=parse_pattern(pattern), kernel="chunked", context=context, frames=256, height=64, width=64,
                heads=16, head_dim=128, dtype="bfloat16", mode=BOTH)
    found = rows.get(f"{chips} {case.key}")
    return of(found) * factor if found and found["status"] == "compiled" else None


def _quotient(pattern: str, context: str, few: int, many: int, of: Callable[[dict[str, Any]], float], factor: float,
              ) -> Callable[[Rows], float | None]:
    def value(rows: Rows) -> float | None:
        over, under = (_of(rows, chips, pattern, context, of, 1.0) for chips in (many, few))
        return None if over is None or under is None else over / under * factor

    return value


def table(rows: Rows, wanted: list[Target]) -> str:
    """Markdown: every number, what was wanted and what was recorded."""
    lines = ["| | wanted | recorded | |", "|---|---:|---:|---|"]
    for target in wanted:
        value = target.value(rows)
        shown, verdict = "not recorded", ""
        if value is not None:
            shown, verdict = f"{value:.2f}", "met" if target.met(value) else "missed"
        lines.append(f"| {target.text} | {target.wanted} | {shown} | {verdict} |")
    return "\n".join(lines)
