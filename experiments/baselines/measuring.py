"""What both benchmarks share: describing the machine, timing while watching other processes, summaries, records."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # per second, of /proc/stat


def device(threads: int) -> dict[str, Any]:
    """Processor, cores, memory and threads used."""
    name = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": name, "cores": os.cpu_count(), "threads": threads, "memory_gib": round(memory, 1),
            "system": platform.system()}


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; 'not installed' where a package is absent."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def busy_seconds() -> float:
    """CPU seconds that all processes, and the host, have taken from this machine since it started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, interrupts, soft, steal = fields
    return (user + nice + system + interrupts + soft + steal) / TICK


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall, own CPU and other processes' CPU seconds of one call."""
    busy, cpu, wall = busy_seconds(), time.process_time(), time.perf_counter()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "others": max(0.0, busy_seconds() - busy - cpu)}


def summary(repetitions: list[dict[str, float]]) -> dict[str, Any]:
    """Median and range of wall seconds, median CPU seconds, and the largest share of the machine others took."""
    walls = [r["wall"] for r in repetitions]
    cores = os.cpu_count() or 1
    return {
        "median": round(statistics.median(walls), 4), "low": round(min(walls), 4), "high": round(max(walls), 4),
        "cpu": round(statistics.median(r["cpu"] for r in repetitions), 4),
        "others_share": round(statistics.median(r["others"] / (cores * r["wall"]) for r in repetitions), 3),
        "repetitions": len(repetitions),
    }


def forget_peak() -> None:
    """Make the kernel forget this process's peak memory, so that the next peak is that of the steps alone."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak resident memory since `forget_peak`, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 0)
    raise OSError("/proc/self/status has no VmHWM")


def load(path: Path) -> dict[str, Any] | None:
    """A record, or None when there is none yet."""
    return json.loads(path.read_text()) if path.exists() else None


def save(path: Path, record: dict[str, Any]) -> None:
    """Write a record so that an interruption leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)
