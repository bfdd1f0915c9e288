"""A report as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from vdm_jax.planning.chips import GIB
from vdm_jax.planning.search import Found


def show(report: Mapping[str, Any], console: rich.console.Console) -> None:
    """Print a judged report: what it is of, numbers, collectives, and what to do about it."""
    table = rich.table.Table(title=headline(report), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in lines(report):
        table.add_row(name, value)
    console.print(table)
    if report["collectives"]:
        console.print(_collectives(report))
    for note in (*report["warnings"], *report["notes"]):
        console.print(f"note: {note}", markup=False)
    if report["verdict"] == "does not fit":
        console.print("\nIt does not fit. What would help, the cheapest first:", markup=False)
        for line in report["advice"]:
            console.print(f"  - {line}", markup=False)


def headline(report: Mapping[str, Any]) -> str:
    """`captioned_digits, stage base: train step of 8 clips on 8 v5e chips`."""
    where = report["topology"] or "the devices at hand"
    what = "train step" if report["what"] == "train" else "sampling"
    count = report["chips"]
    return (f"{report['experiment']}, stage {report['stage']}: {what} of {report['batch']} clips on {count} "
            f"{report['chip'] or report['kind']} chip{'s' * (count != 1)} ({where})")


def lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of the table: name and value."""
    each = "device" if report["devices_per_chip"] > 1 else "chip"
    mesh = ", ".join(f"{axis}={size}" for axis, size in report["mesh"].items() if size > 1)
    yield "mesh", f"{mesh or 'one device'}; remat {report['remat']}, micro-batches {report['accumulation']}"
    yield "parameters", f"{report['parameters']:,}"
    state = " + ".join(f"{name} {amount(size)}" for name, size in report["state"].items())
    yield f"state per {each}", f"{amount(sum(report['state'].values()))} = {state}"
    yield f"memory per {each}", _memory(report)
    flops = report["flops"]
    forward = [flops["forward"][part] for part in ("attention", "dense", "convolution")]
    share = forward[0] / max(sum(forward), 1)
    yield "FLOPs", (f"{si(flops['model'])} model ({share:.0%} attention), {si(flops['computed'])} computed; per {each} "
                    f"{si(flops['model_per_device'])} and {si(flops['computed_per_device'])}")
    if found := report["roofline"]:
        yield "roofline", _terms(found) + ", each at least"
        call = "step" if report["what"] == "train" else "call"
        yield f"{call}, at least", f"{time(found['step_seconds'])}, limited by {found['limited_by']}"
        if compiled := report.get("as_compiled"):
            yield "links, as compiled", (f"{_terms(compiled)} at effort {report['effort']}; {call} with this traffic "
                                         f"at least {time(compiled['step_seconds'])}")
        if report["what"] == "train":
            yield "whole run, at least", whole_run(report)
        yield "MFU, at most", f"{found['mfu']:.1%}"
    elif report["status"] == "compiled":
        yield "roofline", f"none: no published figures for {report['kind']}"
    yield "compiled", (f"in {report['compile_seconds']:.0f} s at effort {report['effort']}, traced in "
                       f"{report['trace_seconds']:.0f} s, {report['date']}, jax {report['versions']['jax']}")


def _terms(found: Mapping[str, Any]) -> str:
    terms = ", ".join(f"{name} {time(seconds)}" for name, seconds in found["seconds"].items())
    return terms + (f" ({found['left_out']})" if "left_out" in found else "")


def whole_run(report: Mapping[str, Any]) -> str:
    """Hours of all steps at the bound, chip-hours, and what they cost where a price is known:
    `41.2 h of 100,000 steps, 659 chip-hours, 1,976 at 3 per chip-hour`. Evaluations, checkpoints and pauses come on
    top."""
    hours = report["steps"] * report["roofline"]["step_seconds"] / 3600
    text = f"{_number(hours)} h of {report['steps']:,} steps, {_number(hours * report['chips'])} chip-hours"
    if (price := report.get("price")) is not None:
        text += f", {hours * report['chips'] * price:,.2f} at {price:g} per chip-hour"
    return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory(report: Mapping[str, Any]) -> str:
    memory, capacity = report.get("memory"), report["capacity"]
    limit = f" of {amount(capacity)}" if capacity else ""
    if report["status"] != "compiled":
        return f"[red]{report['status']}[/red]" + (f": needs {amount(memory['needed'])}{limit}" if memory else "")
    colour = {"fits": "green", "does not fit": "red"}.get(report["verdict"], "yellow")
    parts = " + ".join(f"{name} {amount(memory[key])}" for name, key in (
        ("arguments", "arguments"), ("new outputs", "new_outputs"), ("temporaries", "alive"), ("code", "code")))
    return f"[{colour}]{amount(memory['needed'])}{limit}, {report['verdict']}[/{colour}] = {parts}"


def _collectives(report: Mapping[str, Any]) -> rich.table.Table:
    table = rich.table.Table("collective", "mesh axes", title="Collectives per device and call, as compiled",
                             title_justify="left")
    for name in ("number", "bytes", "sent at least", "overlapped"):
        table.add_column(name, justify="right")
    for row in report["collectives"]:
        more = " and more in loops of unknown length" if "unknown_loops" in row else ""
        table.add_row(row["kind"], row["axes"] + more, str(row["count"]), amount(row["bytes"]), amount(row["sent"]),
                      amount(row.get("overlapped_bytes", 0)))
    return table


def show_search(rows: Sequence[Found], console: rich.console.Console) -> None:
    """Print the outcome of a search, the best first."""
    table = rich.table.Table("mesh", "remat", title="What fits, the best first", title_justify="left")
    for name in ("largest batch", "memory per device", "clips/s at most", "MFU at most"):
        table.add_column(name, justify="right")
    for row in rows:
        mesh = ", ".join(f"{axis}={size}" for axis, size in vars(row.mesh).items() if size != 1) or "one device"
        if row.report is None:
            table.add_row(mesh, str(row.remat), "none", row.reason, "", "")
            continue
        rate = row.report.get("roofline")
        table.add_row(mesh, str(row.remat), str(row.report["batch"]), amount(row.report["memory"]["needed"]),
                      f"{row.clips_per_second:,.1f}" if rate else "", f"{rate['mfu']:.1%}" if rate else "")
    console.print(table)


def amount(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, factor in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size:.0f} B"


def si(count: float) -> str:
    """A count with a decimal prefix: 12.3 T."""
    for unit, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"


def time(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
