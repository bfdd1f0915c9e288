"""Sharded attention next to attention on one device: the largest error of output and gradients, for every context,
kernel and pattern that the capability table lists.

Run:   python -m experiments.attention_benchmark.sharded_errors            in the root of the repository
       python -m experiments.attention_benchmark.sharded_errors --report   only write the tables from the record
Needs: nothing more; 8 virtual CPU devices. An interrupted run goes on where it stopped.
It ends with exit code 1 when an error is above the tolerance.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from vdm_jax.attention import (
    BlockCausal,
    Causal,
    FirstFrames,
    Full,
    LocalWindow,
    Neighbourhood,
    Radial,
    SlidingTiles,
    SparseCausal,
    Spatial,
    TeacherForcing,
    Temporal,
    TemporalCausal,
    attend,
)
from vdm_jax.attention.capability import CAPABILITIES, entries_for
from vdm_jax.attention.contexts import CONTEXTS
from vdm_jax.attention.patterns import OwnPattern
from vdm_jax.benchmark import machine
from vdm_jax.benchmark.cases import label
from vdm_jax.benchmark.record import load, open_record, save
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "sharded_errors.json"
PAGES = (HERE / "README.md", HERE.parent.parent / "docs" / "concepts" / "patterns.md")
DEVICES, BATCH, SHAPE, HEAD_DIM = 8, 2, (16, 4, 4), 8
MESH = MeshSpec(data=2, context=4)
TOLERANCE = 1e-5  # of the largest value; float32 rounds to 6e-8 of it, and sums are taken in another order
# Of every kind one, of some several; `PerHead` is a call for each of its groups.
PATTERNS: tuple[OwnPattern, ...] = (
    Spatial(), Temporal(), TemporalCausal(), TemporalCausal(window=3), Full(), Causal(), Causal(window=4),
    SparseCausal(own=True), Neighbourhood(frames=4, height=3, width=2, stride=(2, 3, 1), dilation=(2, 1, 2)),
    SlidingTiles(tile=(2, 2, 2)), Radial(), BlockCausal(block=2, window=4, sink=2), TeacherForcing(frames=8, block=2),
    LocalWindow(frames=3, height=3, width=3), FirstFrames())
PROTOCOL = {
    "work": "output of attention, and gradients of queries, keys and values for a standard normal cotangent",
    "input": f"standard normal float32 times 1.5, [{BATCH}, {', '.join(map(str, SHAPE))}, heads, {HEAD_DIM}], seed 0; "
             "of each pattern 4 heads, 2 with ulysses_ring",
    "sharded": f"frames over 4 and samples over 2 of {DEVICES} virtual CPU devices, inside jit",
    "single": "kernel xla on one device without a mesh, at the highest precision of products",
    "error": "largest difference of two elements, divided by the largest element on one device",
}


def cases() -> list[tuple[str, str, OwnPattern]]:
    """Context, kernel and pattern of every row of the capability table that a CPU computes."""
    rows = [(context, kernel) for context in CONTEXTS for kernel, c in CAPABILITIES
            if c == context and "cpu" in CAPABILITIES[kernel, c].platforms]
    return [(context, kernel, pattern) for pattern in PATTERNS for context, kernel in rows
            if (kernel, context) in entries_for(pattern)]


def both(function: Callable[..., Any]) -> Callable[..., Any]:
    """Output and gradients of a function of queries, keys and values, for a cotangent."""

    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        out, pull = jax.vjp(function, *(arrays[key] for key in "qkv"))
        return {"output": out, **dict(zip(("d_q", "d_k", "d_v"), pull(arrays["cotangent"]), strict=True))}

    return jax.jit(run)


def heads_of(context: str) -> int:
    """Heads of a case: with `ulysses_ring` two of four devices share them, and a ring of two is left."""
    return 2 if context == "ulysses_ring" else 4


def inputs(heads: int) -> dict[str, Any]:
    """Queries, keys, values and the cotangent of the output."""
    rng = np.random.default_rng(0)
    return {key: jnp.asarray((1.0 if key == "cotangent" else 1.5) * rng.normal(
        size=(BATCH, *SHAPE, heads, HEAD_DIM)), jnp.float32) for key in ("q", "k", "v", "cotangent")}


@functools.lru_cache(maxsize=4)
def single(pattern: OwnPattern, heads: int) -> dict[str, np.ndarray]:
    """Output and gradients on one device."""
    with jax.default_matmul_precision("highest"):
        found = both(lambda q, k, v: attend(q, k, v, pattern=pattern, kernel="xla"))(inputs(heads))
    return {name: np.asarray(value) for name, value in found.items()}


def errors(context: str, kernel: str, pattern: OwnPattern) -> dict[str, float]:
    """Relative errors of the output and of every gradient."""
    heads, mesh = heads_of(context), make_mesh(MESH, jax.devices()[:DEVICES])
    with jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
        placed = jax.device_put(inputs(heads), NamedSharding(mesh, P("data", "context")))
        found = both(lambda q, k, v: attend(q, k, v, pattern=pattern, kernel=kernel, context=context))(placed)
    return {name: float(np.abs(np.asarray(found[name]) - wanted).max() / np.abs(wanted).max())
            for name, wanted in single(pattern, heads).items()}


def measure(path: Path, todo: list[tuple[str, str, OwnPattern]], *, fresh: bool = False) -> dict[str, Any]:
    """The record with every case; what it has already is left alone. Raises `UserError` when it was made under other
    circumstances."""
    about = {"device": machine.describe(jax.devices()[0], DEVICES), "versions": versions(), "protocol": PROTOCOL}
    record = open_record(path, about, fresh=fresh)
    for number, (context, kernel, pattern) in enumerate(todo):
        key = f"{label(pattern)} {context} {kernel}"
        if key not in record["rows"]:
            print(f"{number + 1}/{len(todo)} {key}", flush=True)
            record["rows"][key] = {"pattern": label(pattern), "context": context, "kernel": kernel,
                                   "heads": heads_of(context), **errors(context, kernel, pattern)}
            save(path, record)
    return record


def worst(row: dict[str, Any]) -> tuple[float, float]:
    """Error of the output, and the largest of the gradients."""
    return row["output"], max(row["d_q"], row["d_k"], row["d_v"])


def table(record: dict[str, Any]) -> str:
    """A line per pattern and kernel, a column per context: error of the output / largest of the gradients."""
    rows, cells = record["rows"].values(), {}
    for row in rows:
        of_line = cells.setdefault((row["pattern"], row["kernel"]), {})
        of_line[row["context"]] = " / ".join(f"{value:.0e}" for value in worst(row))
    order = {label(pattern): number for number, pattern in enumerate(PATTERNS)}
    lines = ["| pattern | kernel | " + " | ".join(CONTEXTS) + " |", "|---|---|" + "---:|" * len(CONTEXTS)]
    for (pattern, kernel), found in sorted(cells.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        lines.append(f"| {pattern} | {kernel} | " + " | ".join(found.get(c, "") for c in CONTEXTS) + " |")
    output, gradient = (max(values) for values in zip(*map(worst, rows), strict=True))
    facts = "; ".join(f"{name}: {what}" for name, what in record["protocol"].items())
    return "\n".join([
        *lines, "",
        f"Largest error of {len(rows)} rows: {output:.1e} of the output, {gradient:.1e} of a gradient. Cells are "
        "output / largest gradient; empty where the capability table has no row.", "",
        f"{facts}. Recorded {record['date']} ({record['device']['kind']}; "
        f"{', '.join(f'{name} {value}' for name, value in record['versions'].items())})."])


def write_report(path: Path = RECORD, pages: tuple[Path, ...] = PAGES) -> None:
    """Put the table between its markers in the pages."""
    text = table(load(path))
    for page in pages:
        page.write_text(insert(page.read_text(), "sharded_errors", text))


def main(arguments: list[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write the tables from the record")
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    args = parser.parse_args(arguments)

    def work() -> None:
        if not args.report:
            jax.config.update("jax_num_cpu_devices", DEVICES)
            jax.config.update("jax_platforms", "cpu")
            measure(RECORD, cases(), fresh=args.fresh)
        write_report()

    if code := exit_code("sharded_errors", work):
        return code
    above = [key for key, row in load(RECORD)["rows"].items() if max(worst(row)) > TOLERANCE]
    print("\n".join(f"above {TOLERANCE:g}: {key}" for key in above) or HERE / "README.md")
    return int(bool(above))


if __name__ == "__main__":
    sys.exit(main())
