"""Which gathers of weights, and which sums of gradients, the compiler for TPUs writes as sums of whole arrays.

One product with weights that are stored split by rows, and its gradient, compiled for slices that are not there.

Run:   python -m experiments.scaling.sums           writes results/sums.json and README.md; a minute
Needs: pip install 'vdm_jax[tpu]' (no TPU)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.scaling.report import PAGE, write_report
from vdm_jax.benchmark.record import save
from vdm_jax.parallel.collectives import collectives
from vdm_jax.parallel.compiling import no_compilation_cache, optimization_level
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.parallel.rules import batch_sharding
from vdm_jax.planning import topology
from vdm_jax.planning.program import EFFORTS, plan_mesh
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "sums.json"
COLUMNS, TOKENS, CLIPS = 1024, 128, 4  # clips per chip
# Slice, chips that share the weights, rows of a chip.
CASES = (("v5p-128", 64, 64), ("v5p-128", 64, 16), ("v5p-128", 32, 32), ("v5p-128", 16, 64), ("v5p-1024", 512, 8),
         ("v5p-1024", 256, 4), ("v5e-64", 64, 64), ("v6e-64", 64, 16), ("v6e-256", 256, 16), ("v6e-256", 128, 32),
         ("v6e-256", 64, 16), ("v6e-256", 64, 8), ("v6e-256", 64, 4), ("v6e-256", 64, 1), ("2xv6e-256", 256, 4))


def measure(name: str, fsdp: int, rows: int) -> dict[str, Any]:
    """One row: bytes of the collectives of each kind, and the bytes of the weights."""
    devices = topology.devices(name)
    mesh = plan_mesh(MeshSpec(data=len(devices) // fsdp, fsdp=fsdp), devices)
    split = NamedSharding(mesh, P("fsdp", None))
    w = jax.ShapeDtypeStruct((fsdp * rows, COLUMNS), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct((CLIPS * len(devices), TOKENS, fsdp * rows), jnp.bfloat16, sharding=batch_sharding(mesh))

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.square((x @ w.astype(x.dtype)).astype(jnp.float32)).mean()

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss), out_shardings=split).lower(w, x)
    with no_compilation_cache(), optimization_level(EFFORTS["fast"]):
        found = collectives(lowered.compile().as_text())
    return {"slice": name, "chips": topology.parse(name).chips, "fsdp": fsdp, "rows": rows,
            "weights": 2 * fsdp * rows * COLUMNS, "bytes": {kind: numbers["bytes"] for kind, numbers in found.items()}}


def main() -> int:
    """All cases."""
    save(RECORD, {"rows": [measure(*case) for case in CASES], "columns": COLUMNS, "versions": versions()})
    write_report(HERE / "results" / "compiled.json", HERE / "README.md", PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
