"""How fast a stage could be: the slowest of computing, memory and links at published peaks.

A roofline (Williams et al. 2009, doi 10.1145/1498765.1498785) with the links between chips as a third roof. FLOPs and
bytes are counted from shapes (`flops.py`, `moved.py`), so the bound is the same whatever the compiler's effort. Rates
are peaks that no program reaches, and the terms are taken to overlap perfectly. So a step takes longer than
`step_seconds`, and `mfu` is a bound from above. What the compiled program sends, which may be much more than it must,
is a second, higher estimate: that of `as_compiled`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vdm_jax.planning.chips import Chip

METHOD = ("from shapes, the same at every effort of the compiler; peaks of the chip's page; compute: computed FLOPs at "
          "the bfloat16 peak; memory: bytes that must move (state read and written, gradients, inputs, activations "
          "saved for the backward pass written and read once; sampling: parameters and the video once per "
          "evaluation); interconnect and network: split parameters gathered once and gradients summed, over all links "
          "of the chip, within a slice and between slices; step_seconds: the largest (perfect overlap), a bound from "
          "below; mfu: model FLOPs per second over the peak, a bound from above")


@dataclasses.dataclass(frozen=True)
class Load:
    """What one device does in one call of a program, at the least."""

    model: float  # FLOPs that utilisation is measured against
    computed: float  # FLOPs that it does
    moved: float  # bytes of its memory
    sent: float  # bytes to devices of its slice
    sent_far: float = 0.0  # bytes to other slices


def roofline(load: Load, chip: Chip) -> dict[str, Any]:
    """Seconds of each term, the limiting one, step time and model FLOPs utilisation (0 to 1)."""
    share = 1 / chip.devices
    seconds = {"compute": load.computed / (chip.flops * share), "memory": load.moved / (chip.hbm_bandwidth * share),
               **link_seconds(load.sent, load.sent_far, chip)}
    limit = max(seconds, key=seconds.get)
    step = seconds[limit]
    found = {"seconds": seconds, "limited_by": limit, "step_seconds": step,
             "mfu": min(load.model / step / (chip.flops * share), 1.0),  # rounding may exceed it
             "chip": chip.name, "source": chip.source, "method": METHOD}
    return found | _left_out(load.sent_far, chip)


def as_compiled(bound: Mapping[str, Any], sent: float, sent_far: float, chip: Chip) -> dict[str, Any]:
    """The bound with the bytes that a compiled program sends in place of those that it must: seconds of its links, and
    `step_seconds`. Depends on the effort of the compiler."""
    seconds = link_seconds(sent, sent_far, chip)
    return {"seconds": seconds, "step_seconds": max(bound["step_seconds"], *seconds.values()),
            **_left_out(sent_far, chip)}


def link_seconds(sent: float, sent_far: float, chip: Chip) -> dict[str, float]:
    """Seconds of a device's bytes at the peak of the links, `interconnect` within a slice and `network` between slices
    (absent where nothing is sent, or where no figure is published)."""
    share = 1 / chip.devices
    seconds = {"interconnect": sent / (chip.links * share)}
    if sent_far and chip.network is not None:
        seconds["network"] = sent_far / (chip.network * share)
    return seconds


def _left_out(sent_far: float, chip: Chip) -> dict[str, str]:
    if not sent_far or chip.network is not None:
        return {}
    return {"left_out": f"traffic between slices: no figure is published for {chip.name}"}


def split_sent(rows: Sequence[Mapping[str, Any]], far_axes: Sequence[str]) -> tuple[int, int]:
    """Bytes sent within a slice and between slices; what crosses an axis that leaves the slice counts as far."""
    far = sum(row["sent"] for row in rows if set(row["axes"].split("+")) & set(far_axes))
    return sum(row["sent"] for row in rows) - far, far
