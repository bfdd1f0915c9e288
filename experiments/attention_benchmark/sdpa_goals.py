"""What attention on a CPU should reach, next to what a record of `peer_sdpa.py` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rate = Callable[[str, str], float]  # pattern and size, forward -> our FLOP/s
SPARSE = "SparseCausal(own=True)"


def _size(row: dict[str, Any]) -> str:
    return f"{row['frames']}x{row['side']}x{row.get('width') or row['side']}"


def _best(row: dict[str, Any]) -> dict[str, Any]:
    """Ours, with threads or with devices, whichever is faster."""
    ours = [found for name, found in row["contenders"].items() if name.startswith("vdm_jax")]
    return min(ours, key=lambda found: found.get("median", float("inf")))


def goals(record: dict[str, Any]) -> list[str]:
    """Markdown table of goals of forward passes; empty where the record lacks a case of them."""
    forward = {(row.get("name", "full"), _size(row)): _best(row)
               for row in record["rows"] if row["mode"] == "forward"}
    peak = record["peaks"].get("vdm_jax", {}).get("flops_per_second")

    def rate(pattern: str, size: str) -> float:
        return forward[pattern, size]["flops_per_second"]

    def seconds(pattern: str, size: str) -> float:
        return forward[pattern, size]["median"]

    moved = record.get("moved", {}).get("bytes_per_second")
    try:
        found = [
            ("spatial, 256 tokens: share of the matrix peak", ">= 0.30", rate("spatial", "16x16x16") / peak),
            ("spatial, 1,024 tokens: share of the matrix peak", ">= 0.40", rate("spatial", "4x32x32") / peak),
            ("sparse-causal, 16 frames: share of the matrix peak", ">= 0.35", rate(SPARSE, "16x16x16") / peak),
            ("full over sparse-causal, 32 frames: seconds; full reckoned as 4 times its 16 frames", ">= 3",
             4 * seconds("full", "16x16x16") / seconds(SPARSE, "32x16x16")),
            *([("temporal, 16 frames: seconds over those of moving its four arrays once", "<= 3",
                seconds("temporal", "16x16x16") / (_bytes(record) / moved))] if moved else []),
            ("causal over full, 16 frames: seconds", "<= 0.6",
             seconds("causal", "16x16x16") / seconds("full", "16x16x16")),
            ("12x12: seconds per FLOP over the mean of 8x8 and 16x16", "<= 1.3", _beside(
                rate, "28x12x12", "64x8x8", "16x16x16")),
            ("24x40: seconds per FLOP over that of 32x32", "<= 1.3", _beside(rate, "4x24x40", "4x32x32")),
        ]
    except (KeyError, TypeError):
        return []
    lines = [f"| {what} | {goal} | {value:.2f} | {'yes' if _met(value, goal) else 'no'} |"
             for what, goal, value in found]
    return ["| forward | goal | recorded | reached |", "|---|---:|---:|---|", *lines, ""]


def _bytes(record: dict[str, Any]) -> float:
    """Of queries, keys, values and outputs of temporal attention over 16 frames of 16x16 tokens."""
    row = next(row for row in record["rows"] if row.get("name") == "temporal" and _size(row) == "16x16x16")
    width = 2 if row["dtype"] == "bfloat16" else 4
    return 4 * width * row["frames"] * row["side"] ** 2 * row["heads"] * row["head_dim"]


def _beside(rate: Rate, size: str, *neighbours: str) -> float:
    """Seconds per FLOP of spatial attention of a size over the mean of that of others."""
    mean = sum(1 / rate("spatial", other) for other in neighbours) / len(neighbours)
    return 1 / rate("spatial", size) / mean


def _met(value: float, goal: str) -> bool:
    sign, number = goal.split()
    return value >= float(number) if sign == ">=" else value <= float(number)
