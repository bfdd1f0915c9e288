"""Running a compiled case: warm-up, repetitions within a time budget, memory while they ran."""

from __future__ import annotations

import math
import os
import statistics
import time
from typing import Any

import jax

from vdm_jax.benchmark.machine import busy_seconds, forget_peak, peak_resident_bytes, platform_of
from vdm_jax.benchmark.program import Program, Unfit, out_of_memory

LEAST_SECONDS = 0.02  # of one repetition; shorter calls are repeated inside it
LEAST, MOST = 3, 30  # repetitions
LONG = 5  # budgets; a warm-up call that takes longer is not repeated
LEAST_WATCHED = 0.3  # seconds after which the system's counters, in ticks of 10 ms, say something


def run(program: Program, seconds: float) -> dict[str, Any]:
    """Time a program for about `seconds` after one warm-up call; seconds are per call.

    A warm-up call that takes several times the budget is itself the one repetition. Raises `Unfit` when the device
    runs out of memory.
    """
    device = program.mesh.devices.flat[0]
    try:
        inputs = program.inputs()
        jax.block_until_ready(inputs)
        watched, before = _forget(device)
        watch = Watch()
        first = _call(program, inputs, 1)
        kept = [first]
        if first <= LONG * seconds:
            kept = []
            calls, start = max(1, math.ceil(LEAST_SECONDS / first)), time.perf_counter()
            while len(kept) < LEAST or (len(kept) < MOST and time.perf_counter() - start < seconds):
                kept.append(_call(program, inputs, calls))
        others = watch.share()
    except jax.errors.JaxRuntimeError as error:
        raise Unfit(out_of_memory(error)) from None
    found = {"median": statistics.median(kept), "low": min(kept), "high": max(kept)}
    found = {name: round(value, 7) for name, value in found.items()}
    return {"seconds": {**found, "repetitions": len(kept), "others_share": others},
            "first_call_seconds": round(first, 6), **_peak(device, watched, before)}


def _call(program: Program, inputs: list[jax.Array], calls: int) -> float:
    """Wall seconds of one of several calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        out = program.compiled(*inputs)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls


class Watch:
    """What other processes take of the machine from now on."""

    def __init__(self):
        self._wall, self._cpu, self._busy = time.perf_counter(), time.process_time(), busy_seconds()

    def share(self) -> float | None:
        """Their part of all cores; None where the system does not say, or after less than a few of its ticks."""
        wall = time.perf_counter() - self._wall
        if self._busy is None or wall < LEAST_WATCHED:
            return None
        others = busy_seconds() - self._busy - (time.process_time() - self._cpu)
        return round(max(0.0, others) / ((os.cpu_count() or 1) * wall), 3)


def _forget(device: jax.Device) -> tuple[bool, int]:
    if platform_of(device) == "cpu":
        return forget_peak(), 0
    return True, (device.memory_stats() or {}).get("peak_bytes_in_use", 0)


def _peak(device: jax.Device, watched: bool, before: int) -> dict[str, int | None]:
    """Peak of memory while the case ran: of the process on a CPU; of an accelerator only when it rose, since a device
    keeps its highest peak for good."""
    if platform_of(device) == "cpu":
        return {"process_peak": peak_resident_bytes() if watched else None}
    now = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {"device_peak": now if now > before else None}
