"""Records made up for tests of reports and targets."""

from __future__ import annotations

from vdm_jax.benchmark.cases import Case
from vdm_jax.benchmark.machine import GIB


def measured(case: Case, seconds: float = 0.5, total: float = GIB, **changes) -> dict:
    """The row of a case that ran."""
    return {"case": case.to_data(), "status": "measured", "kernel": "chunked" if case.kernel == "auto" else case.kernel,
            "devices": 1, "compile_seconds": 1.25, "flops": case.flops,
            "seconds": {"median": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds, "repetitions": 5,
                        "others_share": 0.0},
            "first_call_seconds": seconds, "process_peak": int(total), "flops_per_second": case.flops / seconds,
            "matmul_fraction": 0.42, "took_seconds": 3.0,
            "memory": {"arguments": 1, "outputs": 1, "temporaries": total - 2, "code": 0, "total": total}, **changes}


def skipped(case: Case, reason: str, status: str = "skipped") -> dict:
    """The row of a case that did not run."""
    return {"case": case.to_data(), "status": status, "reason": reason, "took_seconds": 0.0}


def record(*rows: dict, **changes) -> dict:
    """A record of these rows."""
    device = {"platform": "cpu", "kind": "A processor", "count": 1, "cores": 2, "memory_gib": 8.0}
    return {"benchmark": "attention", "device": device, "versions": {"python": "3.11", "jax": "0.10.2"},
            "protocol": {"work": "what was done"}, "date": "2026-01-02",
            "matmul": {"float32": {"flops_per_second": 1e11, "median": 9e10, "size": 2048, "repetitions": 5}},
            "rows": {Case.from_data(row["case"]).key: row for row in rows}, **changes}
