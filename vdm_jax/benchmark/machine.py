"""The device that measures: what it is, what it holds, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.versions import versions as versions  # part of what a record says of its machine

MATRIX = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # rows and columns of the matrices of the peak
GIB = 2**30


def platform_of(device: jax.Device) -> str:
    """cpu, gpu or tpu."""
    return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)


def describe(device: jax.Device, count: int) -> dict[str, Any]:
    """Kind and number of devices; for a CPU its processor, cores and memory."""
    found: dict[str, Any] = {"platform": platform_of(device), "kind": device.device_kind, "count": count}
    if found["platform"] == "cpu":
        found |= {"kind": _processor(), "cores": os.cpu_count(), "memory_gib": round(_physical_bytes() / GIB, 1)}
    return found


def memory_limit(device: jax.Device) -> int:
    """Bytes that a case may take: nine tenths of an accelerator's memory, four fifths of a host's."""
    if platform_of(device) == "cpu":
        return int(0.8 * _physical_bytes())
    stats = device.memory_stats() or {}
    return int(0.9 * stats["bytes_limit"]) if "bytes_limit" in stats else 2**63


def matmul_peak(device: jax.Device, dtype: str, seconds: float = 2.0, size: int | None = None) -> dict[str, Any]:
    """FLOP/s of a product of two square matrices of `dtype`, at JAX's default precision: the fastest repetition."""
    size = size or MATRIX[platform_of(device)]
    a, b = (jax.device_put(jax.random.normal(jax.random.key(i), (size, size), jnp.dtype(dtype)), device)
            for i in range(2))
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, b))
    taken, start = [], time.perf_counter()
    while len(taken) < 3 or (time.perf_counter() - start < seconds and len(taken) < 200):
        begin = time.perf_counter()
        jax.block_until_ready(multiply(a, b))
        taken.append(time.perf_counter() - begin)
    return {"flops_per_second": 2 * size**3 / min(taken), "median": 2 * size**3 / statistics.median(taken),
            "size": size, "repetitions": len(taken)}


# ---------------------------------------------------------------------------------------------- Linux only


def busy_seconds() -> float | None:
    """CPU seconds that all processes and the host have taken from this machine since it started, where known."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _idle, _wait, *rest = (int(x) for x in path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def forget_peak() -> bool:
    """Start anew to watch the process's peak of resident memory; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int:
    """Peak of resident memory since `forget_peak`, with interpreter and libraries."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                platform.processor() or platform.machine())
