"""Going through the cases of a sweep: what is recorded already is left alone, every new row is written at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from vdm_jax.benchmark import machine
from vdm_jax.benchmark.cases import FLOP_FACTOR, Case
from vdm_jax.benchmark.program import Unfit, build, mesh_of
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.benchmark.timing import LEAST, LONG, run
from vdm_jax.errors import UserError
from vdm_jax.parallel.collectives import collectives
from vdm_jax.parallel.compiling import no_compilation_cache
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.planning import topology
from vdm_jax.versions import versions

Progress = Callable[[int, int, str, float | None], None]  # cases done, cases in all, what is next, seconds left

ALL_ON_CONTEXT = MeshSpec(data=1, context=-1)
UNMEASURED_RATE = 5e10  # FLOP/s that remaining time is reckoned with until something is measured
COMPILE_SECONDS = 1.0  # likewise

_FLOPS = (f"exact count of visible (query, key) pairs, 2 per multiply-add; forward+backward is "
          f"{FLOP_FACTOR['forward+backward']} times forward (backward 2.5 times)")
_MEMORY = "arguments + outputs + temporaries of the compiled program, per device"
RUN_PROTOCOL = {
    "inputs": "standard normal queries, keys, values [B, T, H, W, K, D] and, for backward, a normal cotangent",
    "work": "forward: the output; forward+backward: the output and the gradients of queries, keys and values",
    "statistic": "median of wall seconds per call after one warm-up call; a warm-up that takes "
                 "several times the budget is the one repetition",
    "flops": _FLOPS, "memory": _MEMORY + "; process_peak is the resident peak of the whole process",
    "matmul": "fastest product of two square matrices of the dtype at default precision",
}
COMPILE_PROTOCOL = {
    "work": "compiled ahead of time for the topology, nothing was run; forward+backward as in a measured benchmark",
    "flops": _FLOPS, "memory": _MEMORY + ", or the compiler's own figure of the peak where that is larger",
    "collectives": "per device and call: number, and bytes of operands or results, whichever are more; what is in a "
                   "loop as often as it runs",
}


def measure(cases: Sequence[Case], path: Path, *, seconds: float = 3.0, mesh: MeshSpec = ALL_ON_CONTEXT,
            limit: int | None = None, matmul_size: int | None = None, fresh: bool = False,
            progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Measure the cases that the record at `path` lacks, on the devices of this machine.

    Args:
      cases: in the order in which they are measured.
      seconds: time budget of one case's repetitions.
      mesh: of cases with a context; others run on one device.
      limit: bytes per device above which a case is not run; most of the device's memory by default.
      matmul_size: rows of the matrices whose product is the peak; by platform when None.
      fresh: forget what is recorded.

    Returns the record. Raises `UserError` when the file was recorded under other circumstances.
    """
    devices = jax.devices()
    limit = machine.memory_limit(devices[0]) if limit is None else limit
    about = {"benchmark": "attention", "device": machine.describe(devices[0], len(devices)),
             "versions": versions(), "protocol": {**RUN_PROTOCOL, "seconds_per_case": seconds}, "matmul": {}}
    record = open_record(path, about, fresh=fresh)

    def one(case: Case) -> dict[str, Any]:
        program = build(case, mesh_of(case, devices, mesh, spread=False), limit)
        found = {"status": "measured", "kernel": program.kernel, "devices": program.mesh.size,
                 "compile_seconds": round(program.compile_seconds, 3), "flops": case.flops}
        taken = run(program, seconds)
        rate = case.flops / taken["seconds"]["median"] / program.mesh.size
        peak = record["matmul"][case.dtype]["flops_per_second"]
        return {**found, **taken, "memory": program.memory(), "flops_per_second": rate,
                "matmul_fraction": round(rate / peak, 4)}

    for dtype in sorted({case.dtype for case in cases} - set(record["matmul"])):
        record["matmul"][dtype] = machine.matmul_peak(devices[0], dtype, size=matmul_size)
    return _go_through(cases, path, record, one, progress, seconds)


def compile_ahead(cases: Sequence[Case], path: Path, name: str, *, mesh: MeshSpec = ALL_ON_CONTEXT,
                  fresh: bool = False, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Compile the cases that the record at `path` lacks for a TPU topology such as `v5p-64`, without a TPU.

    Rows say memory per chip and the collectives. Raises `UserError` when the name is unknown or libtpu is missing.
    """
    devices = topology.devices(name)
    about = {"benchmark": "attention", "versions": versions(), "protocol": COMPILE_PROTOCOL,
             "device": {"platform": "tpu", "kind": devices[0].device_kind, "count": len(devices),
                        "topology": topology.full_name(name)}}
    record = open_record(path, about, fresh=fresh)

    def one(case: Case) -> dict[str, Any]:
        program = build(case, mesh_of(case, devices, mesh, spread=True))
        axes = {axis: size for axis, size in program.mesh.shape.items() if size > 1}
        return {"status": "compiled", "kernel": program.kernel, "devices": program.mesh.size, "mesh": axes,
                "compile_seconds": round(program.compile_seconds, 3), "flops": case.flops,
                "memory": program.memory(), "collectives": collectives(program.compiled.as_text())}

    return _go_through(cases, path, record, one, progress, 0.0)


def _go_through(cases: Sequence[Case], path: Path, record: dict[str, Any], one: Callable[[Case], dict[str, Any]],
                progress: Progress, seconds: float) -> dict[str, Any]:
    """Rows of the cases that have none; a kernel that fails leaves a row that says so, and is tried again next time."""
    rows = record["rows"]
    todo = [case for case in dict.fromkeys(cases)
            if rows.get(case.key, {}).get("status", "failed") == "failed"]
    total = len(set(cases))
    with no_compilation_cache():
        for i, case in enumerate(todo):
            left = sum(expected_seconds(c, rows, seconds) for c in todo[i:])
            progress(total - len(todo) + i, total, case.key, left)
            start = time.perf_counter()
            try:
                row = one(case)
            except Unfit as reason:
                row = {"status": "skipped", "reason": str(reason)}
            except Exception as error:  # a compiler that gives up must not take the other rows with it
                row = {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            rows[case.key] = {"case": case.to_data(), **row, "took_seconds": round(time.perf_counter() - start, 2)}
            save(path, record)
    if todo or not path.exists():
        save(path, record)
    progress(total, total, "done", 0.0)
    return record


def expected_seconds(case: Case, rows: dict[str, dict[str, Any]], budget: float) -> float:
    """How long a case will take, from the speed of the finished ones: of the same kernel, else of all."""
    done = [row for row in rows.values() if row["status"] == "measured"]
    compiles = [row["compile_seconds"] for row in rows.values() if "compile_seconds" in row] or [COMPILE_SECONDS]
    if not budget:
        return statistics.mean(compiles)
    same = [row for row in done if row["case"]["kernel"] == case.kernel] or done
    rate = statistics.median(row["flops_per_second"] for row in same) if same else UNMEASURED_RATE
    try:
        call = case.flops / rate
    except UserError:  # a pattern that the shape does not fit: its row will say so
        return 0.0
    return statistics.mean(compiles) + call + (max(budget, LEAST * call) if call <= LONG * budget else 0.0)
