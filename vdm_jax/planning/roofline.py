"""How fast a program could be: the slowest of computing, memory and interconnect at published peaks.

A roofline (Williams et al. 2009, doi 10.1145/1498765.1498785) with the interconnect as a third roof. Everything is a
peak that no program reaches, and the three are taken to overlap perfectly; without any overlap they add up. So a step
takes longer than `step_seconds`, and `mfu` is a bound from above.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vdm_jax.planning.chips import Chip

TERMS = ("compute", "memory", "interconnect", "network")
METHOD = ("peaks of the chip's page; compute: computed FLOPs at the bfloat16 peak; memory: the compiler's bytes "
          "accessed, times the steps of a sampler or of accumulation in a loop, other loops once; interconnect: bytes "
          "that collectives send at the least, over all links of the chip; network: those of axes that cross "
          "slices; step_seconds: the largest (perfect overlap); no_overlap_seconds: their sum; mfu: model FLOPs per "
          "second over the peak, a bound from above")


@dataclasses.dataclass(frozen=True)
class Load:
    """What one device does in one call of a program."""

    model: float  # FLOPs that utilisation is measured against
    computed: float  # FLOPs that it does
    accessed: float  # bytes of its memory
    sent: float  # bytes to devices of its slice
    sent_far: float = 0.0  # bytes to other slices


def roofline(load: Load, chip: Chip) -> dict[str, Any]:
    """Seconds of each term, the limiting one, step time and model FLOPs utilisation (0 to 1)."""
    share = 1 / chip.devices
    seconds = {"compute": load.computed / (chip.flops * share), "memory": load.accessed / (chip.hbm_bandwidth * share),
               "interconnect": load.sent / (chip.links * share)}
    missing = load.sent_far and chip.network is None
    if load.sent_far and not missing:
        seconds["network"] = load.sent_far / (chip.network * share)
    limit = max(seconds, key=seconds.get)
    step = seconds[limit]
    found = {"seconds": seconds, "limited_by": limit, "step_seconds": step,
             "no_overlap_seconds": sum(seconds.values()), "mfu": load.model / step / (chip.flops * share),
             "chip": chip.name, "source": chip.source, "method": METHOD}
    if missing:
        found["left_out"] = f"traffic between slices: no figure is published for {chip.name}"
    return found


def split_sent(rows: Sequence[Mapping[str, Any]], far_axes: Sequence[str]) -> tuple[int, int]:
    """Bytes sent within a slice and between slices; what crosses an axis that leaves the slice counts as far."""
    far = sum(row["sent"] for row in rows if set(row["axes"].split("+")) & set(far_axes))
    return sum(row["sent"] for row in rows) - far, far
