"""Compiler options per platform, chosen from the mesh and never from the default backend; compiling anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache
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


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Compile everything anew, so that compile seconds are real; a program for another platform cannot be read back
    from the cache anyway."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers that it was in use
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
