"""Compiler options per platform, chosen from the mesh and never from the default backend."""

from __future__ import annotations

from jax.sharding import Mesh


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options for `jax.jit` on the devices of a mesh.

    On CPU, XLA expands optimisation barriers before it fuses, and then recomputes whole chains of residual additions
    inside every layer that reads them. Keeping the barriers (of residual streams and of rematerialisation) makes a
    train step of a deep network about twice as fast.
    """
    if mesh.devices.flat[0].platform == "cpu":
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return {}
