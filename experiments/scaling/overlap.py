"""Which gathers of weights go on while something is computed, read from schedules compiled at full effort.

The chain is what a transformer block has most of: products with weights that are stored split, recomputed in the
backward pass. Its gradient is compiled for slices that are not there, with and without the XLA flags that we ship. The
whole train step takes hours at full effort; `vdm-jax compile --effort full` reads the same from it.

Run:   python -m experiments.scaling.overlap        writes results/overlap.json and README.md; minutes
Needs: pip install 'vdm_jax[tpu]' (no TPU)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.scaling.report import PAGE, write_report
from vdm_jax.benchmark.record import save
from vdm_jax.parallel.collectives import listed
from vdm_jax.parallel.compiling import no_compilation_cache, optimization_level
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.parallel.rules import batch_sharding
from vdm_jax.planning import topology
from vdm_jax.planning.flags import read_flags
from vdm_jax.planning.program import EFFORTS, plan_mesh
from vdm_jax.planning.traffic import traffic
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "overlap.json"
LAYERS, CHANNELS, TOKENS, CLIPS = 3, 512, 2048, 4  # clips per chip
# Slice, devices that share the weights, effort, flags (a set of vdm_jax/planning/flags).
CASES = (("v5e-16", 4, "full", None), ("v6e-256", 16, "full", None), ("v6e-256", 16, "full", "v6e"),
         ("v6e-256", 64, "full", "v6e"), ("v5p-128", 16, "full", None), ("v5p-128", 16, "full", "v5p"),
         ("v6e-256", 16, "fast", "v6e"))


def chain(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    """A loss of x `[B, S, C]` after residual products with weights `[C, C]`, each recomputed."""

    @jax.checkpoint
    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        return x + jax.nn.silu(x) @ w.astype(x.dtype)

    for w in weights:
        x = layer(x, w)
    return jnp.square(x.astype(jnp.float32)).mean()


def measure(name: str, fsdp: int, effort: str, flags: str | None) -> dict[str, Any]:
    """One row: the gathers of a compiled gradient, and how many of them go on while something is computed."""
    devices = topology.devices(name)
    mesh = plan_mesh(MeshSpec(data=len(devices) // fsdp, fsdp=fsdp), devices)
    split = NamedSharding(mesh, P("fsdp", None))
    weights = [jax.ShapeDtypeStruct((CHANNELS, CHANNELS), jnp.float32, sharding=split)] * LAYERS
    x = jax.ShapeDtypeStruct((CLIPS * len(devices), TOKENS, CHANNELS), jnp.bfloat16, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(chain), out_shardings=[split] * LAYERS).lower(weights, x)
    start = time.perf_counter()
    with no_compilation_cache(), optimization_level(EFFORTS[effort]):
        program = lowered.compile(dict(read_flags(flags)) if flags else {})
    rows = traffic(listed(program.as_text()), dict(mesh.shape))
    gathers = next((row for row in rows if row["kind"] == "all-gather"), {"count": 0, "bytes": 0})
    return {"slice": name, "mesh": dict(mesh.shape), "effort": effort, "flags": flags, "gathers": gathers,
            "compile_seconds": round(time.perf_counter() - start, 1)}


def main() -> int:
    """All cases, written after each."""
    record = {"rows": [], "chain": {"layers": LAYERS, "channels": CHANNELS, "tokens": TOKENS, "clips": CLIPS},
              "versions": versions()}
    for case in CASES:
        record["rows"].append(measure(*case))
        print(record["rows"][-1], file=sys.stderr)
        save(RECORD, record)
    write_report(HERE / "results" / "compiled.json", HERE / "README.md", PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
