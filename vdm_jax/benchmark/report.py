"""A record as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vdm_jax.parallel.collectives import describe

Row = dict[str, Any]
MIB = 2**20


def markdown(record: dict[str, Any]) -> str:
    """Tables of all rows, one per mode, type and heads, with device, versions and protocol under them."""
    groups: dict[str, list[Row]] = {}
    for row in record["rows"].values():
        case = row["case"]
        groups.setdefault(f"{case['mode']}, {case['dtype']}, {case['heads']} heads of {case['head_dim']}, "
                          f"batch {case['batch']}", []).append(row)
    parts = []
    for title, rows in groups.items():
        measured = [r for r in rows if r["status"] == "measured"]
        compiled = [r for r in rows if r["status"] == "compiled"]
        left_out = [r for r in rows if r["status"] in ("skipped", "failed")]
        parts += [f"### {title}", ""]
        parts += [measured_table(measured), ""] if measured else []
        parts += [compiled_table(compiled), ""] if compiled else []
        parts += [left_out_table(left_out), ""] if left_out else []
    return "\n".join([*parts, footer(record)]) + "\n"


def measured_table(rows: Iterable[Row]) -> str:
    """Rows of cases that ran."""
    lines = ["| pattern | kernel | context | frames x tokens | ms (range) | memory, MiB | GFLOP/s | of matmul peak | "
             "compile, s |", "|---|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        s = row["seconds"]
        busy = " †" if (s["others_share"] or 0) > 0.1 else ""
        once = " ‡" if s["repetitions"] == 1 else ""
        times = f"{_ms(s['median'])} ({_ms(s['low'])}-{_ms(s['high'])}){busy}{once}"
        lines.append(f"| {_names(row)} | {_size(row)} | {times} | {_mib(row['memory']['total'])} | "
                     f"{row['flops_per_second'] / 1e9:,.1f} | {row['matmul_fraction']:.2f} | "
                     f"{row['compile_seconds']:.1f} |")
    notes = {"†": "other processes took more than a tenth of the machine",
             "‡": "one call, since it took several times the budget of a case"}
    for mark, text in notes.items():
        lines += ["", f"{mark} {text}"] if any(mark in line for line in lines) else []
    return "\n".join(lines)


def compiled_table(rows: Iterable[Row]) -> str:
    """Rows of cases that were compiled for a topology."""
    lines = ["| pattern | kernel | context | frames x tokens | mesh | memory per chip, MiB | temporary, MiB | "
             "collectives per call | compile, s |", "|---|---|---|---:|---|---:|---:|---|---:|"]
    for row in rows:
        mesh = " ".join(f"{axis}={size}" for axis, size in row["mesh"].items()) or "one chip"
        memory = row["memory"]
        lines.append(f"| {_names(row)} | {_size(row)} | {mesh} | {_mib(max(memory['total'], memory.get('peak', 0)))} | "
                     f"{_mib(memory['temporaries'])} | {describe(row['collectives'])} | "
                     f"{row['compile_seconds']:.1f} |")
    return "\n".join(lines)


def left_out_table(rows: Iterable[Row]) -> str:
    """Rows of cases that were not measured, with the reason; sizes with the same reason stand together."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        reason = row["reason"].split("; permitted")[0].replace("|", "/")  # what is permitted stands in the record
        reason = "failed: " * (row["status"] == "failed") + reason
        sizes.setdefault((_names(row), reason), []).append(_size(row))
    lines = ["| not measured | kernel | context | frames x tokens | why |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {names} | {', '.join(found)} | {why} |" for (names, why), found in sizes.items())])


def footer(record: dict[str, Any]) -> str:
    """Device, versions, date, measured peaks and protocol."""
    device, protocol = record["device"], record["protocol"]
    parts = [f"{device['count']} x {device['kind']}"]
    parts += [f"{device['cores']} cores, {device['memory_gib']} GiB"] if "cores" in device else []
    parts += [f"topology {device['topology']}"] if "topology" in device else []
    used = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [f"Device: {'; '.join(parts)}. {used}. Recorded {record['date']}.", ""]
    for dtype, peak in record.get("matmul", {}).items():
        lines.append(f"- matmul peak, {dtype}: {peak['flops_per_second'] / 1e9:,.1f} GFLOP/s "
                     f"({peak['size']} x {peak['size']})")
    return "\n".join([*lines, *(f"- {name}: {text}" for name, text in protocol.items())])


def _names(row: Row) -> str:
    case = row["case"]
    chosen = row.get("kernel", case["kernel"])
    kernel = f"auto ({chosen})" if case["kernel"] == "auto" and "kernel" in row else chosen
    return f"{case['pattern']} | {kernel} | {case['context']}"


def _size(row: Row) -> str:
    case = row["case"]
    return f"{case['frames']} x {case['height']}x{case['width']}"


def _ms(seconds: float) -> str:
    return _short(1e3 * seconds)


def _mib(size: float) -> str:
    return _short(size / MIB)


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
