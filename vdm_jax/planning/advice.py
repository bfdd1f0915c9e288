"""Whether a program fits into a chip's memory, and what to change when it does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax

from vdm_jax.planning.chips import CHIPS, GIB, chip_of
from vdm_jax.planning.flops import recomputes, remat_choices

STATE_SHARE = 0.5  # of the memory: what training keeps between steps should take no more, the rest is for activations


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def capacity_of(device: jax.Device) -> int | None:
    """Bytes that a program may take on one device; None where that is not known."""
    if device.platform == "cpu":
        return machine_memory() // max(jax.local_device_count("cpu"), 1)
    chip = chip_of(device)
    try:
        stats = device.memory_stats() or {}
    except (jax.errors.JaxRuntimeError, AttributeError, NotImplementedError):  # devices that are not there
        stats = {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return chip.usable // chip.devices if chip else None


def judge(report: Mapping[str, Any], capacity: int | None) -> dict[str, Any]:
    """The report with `capacity` (bytes per device), `verdict` and `advice`.

    The verdict is "fits", "does not fit", or "unknown" where neither the compiler nor a capacity decides, as when the
    compiler runs out of something else than memory, such as flags for what goes on at once (`sflag`). The limit is what
    the compiler states when it refuses, else `capacity`.
    """
    limit = report.get("compiler_limit") or capacity
    needed = report.get("memory", {}).get("needed")
    if report["status"] in ("out of memory", "out of vector memory"):
        verdict = "does not fit"
    elif report["status"] != "compiled":
        verdict = "unknown"
    elif needed is None or limit is None:
        verdict = "unknown"
    else:
        verdict = "fits" if needed <= limit else "does not fit"
    found = {**report, "capacity": limit, "verdict": verdict}
    return {**found, "advice": advice(found) if verdict == "does not fit" else []}


def advice(report: Mapping[str, Any]) -> list[str]:
    """What to change, the cheapest first; each line names the flag."""
    if report["status"] == "out of vector memory":
        return ["a kernel's blocks do not fit the chip's vector memory: --xla-flags with a larger "
                "xla_tpu_scoped_vmem_limit_kib, or another attention kernel"]
    capacity, state = report.get("capacity"), sum(report["state"].values())
    lines = []
    if capacity is not None and state > STATE_SHARE * capacity:
        lines.append(_split_state(report, state, capacity))
    return [*lines, *_smaller_batch(report), *_recompute(report), *_split_clip(report), _other_chips(report, state)]


def _split_state(report: Mapping[str, Any], state: int, capacity: int) -> str:
    """Parameters, optimizer and average over more devices."""
    mesh, wanted = report["mesh"], 1
    while state / wanted > STATE_SHARE * capacity:
        wanted *= 2
    fsdp = mesh["fsdp"] * wanted
    what = "parameters, optimizer and average" if report["what"] == "train" else "the parameters"
    taken = f"{what} take {state / GIB:.2f} of {capacity / GIB:.2f} GiB per device"
    if mesh["data"] % wanted == 0:
        return (f"{taken}: --mesh.fsdp {fsdp} --mesh.data {mesh['data'] // wanted} splits them over {wanted} times the "
                "devices")
    return (f"{taken}: they need fsdp x tensor x context = {fsdp * mesh['tensor'] * mesh['context']} or more, with "
            f"{report['devices']} devices here, so more devices")


def _smaller_batch(report: Mapping[str, Any]) -> list[str]:
    batch, parts, accumulation = report["batch"], report["batch_parts"], report["accumulation"]
    each = batch // parts // (accumulation if report["what"] == "train" else 1)
    if each == 1:
        return []
    half = f"half of its {each} clips per device at a time"
    name = report["stage"]
    if report["what"] == "sample":
        return [f"{half}: --batch {parts * (each // 2)}"]
    factor = next(n for n in range(2, each + 1) if each % n == 0)
    return [f"--{name}.training.accumulation {accumulation * factor}: the same batch in more micro-batches, "
            f"{each // factor} clips per device at a time",
            f"or a smaller batch: --{name}.training.batch-size {parts * accumulation * (each // 2)}"]


def _recompute(report: Mapping[str, Any]) -> list[str]:
    if report["what"] == "sample" or recomputes(report["remat"]):
        return []
    most = "full" if "full" in remat_choices() else remat_choices()[-1]
    return [f"recompute blocks in the backward pass instead of keeping them, for about a third more computing: "
            f"--{report['stage']}.network.{report.get('remat_field', 'remat')} {most}"]


def _split_clip(report: Mapping[str, Any]) -> list[str]:
    """Frames of one clip over devices that now hold copies of the model."""
    mesh, frames = report["mesh"], report["frames"]
    for axis in ("data", "fsdp"):
        if mesh[axis] % 2 == 0 and frames % (2 * mesh["context"]) == 0:
            return [f"split each clip's frames over twice the devices: --mesh.context {2 * mesh['context']} "
                    f"--mesh.{axis} {mesh[axis] // 2}"]
    return []


def _other_chips(report: Mapping[str, Any], state: int) -> str:
    """A larger slice, or chips with more memory."""
    chip, needed = CHIPS.get(report.get("chip")), report.get("memory", {}).get("needed", 0)
    larger = [c.name for c in CHIPS.values() if chip is not None and c.usable / c.devices > chip.usable / chip.devices
              and c.usable / c.devices >= needed and c.name in ("v4", "v5p", "v6e", "tpu7x")]
    if larger:
        return f"more devices, or chips with more memory: {', '.join(larger)}"
    return "more devices"
