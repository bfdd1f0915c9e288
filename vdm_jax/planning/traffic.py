"""What devices send each other in one call of a program: by kind of collective and by the mesh axes that it crosses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vdm_jax.parallel.collectives import Collective, axes_of

# Bytes that each of n devices sends at the least, for B bytes of the whole operand or result (Thakur et al. 2005,
# doi 10.1177/1094342005051521: ring and recursive algorithms reach these).
SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
UNKNOWN = "unknown"  # axes of groups that could not be read


def traffic(found: Sequence[Collective], shape: Mapping[str, int]) -> list[dict[str, Any]]:
    """One row per kind and mesh axes, the most bytes first.

    Rows have `kind`, `axes` (names joined by +; `none` for groups of one device, `unknown`), `count`, `bytes` (of
    operands or results, whichever are more) and `sent` (bytes that leave a device at the least), all per device and
    call, and `unknown_loops` where loops of unknown length count once. Of those that are asynchronous and have
    something to compute between start and end, `overlapped` is the number, `overlapped_bytes` the bytes, `distance` the
    instructions that compute in between, and `cycles` the compiler's estimate of these. `shape` is the mesh's.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in found:
        axes = axes_of(one.groups, shape)
        name = UNKNOWN if axes is None else "+".join(axes) or "none"
        members = math.prod(shape.values()) if axes is None or not one.groups else max(map(len, one.groups))
        row = rows.setdefault((one.kind, name), {"kind": one.kind, "axes": name, "count": 0, "bytes": 0, "sent": 0})
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["sent"] += 0 if name == "none" else int(one.times * one.bytes * SENT[one.kind](members))
        if one.distance:
            for field, value in (("overlapped", 1), ("overlapped_bytes", one.bytes), ("distance", one.distance),
                                 ("cycles", one.cycles)):
                row[field] = row.get(field, 0) + one.times * value
        if one.unknown_loops:
            row["unknown_loops"] = row.get("unknown_loops", 0) + 1
    return sorted(rows.values(), key=lambda row: (-row["bytes"], row["kind"], row["axes"]))
