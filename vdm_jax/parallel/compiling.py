"""The platform to compile for and its options, the mesh deciding before the default backend; compiling anew."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from vdm_jax.errors import UserError

PLATFORMS = ("cpu", "gpu", "tpu")


def target_platform(platform: str | None = None) -> str:
    """Platform to compile for: the one given, else that of the mesh in context, else the default backend.

    The mesh comes first because a program compiled ahead of time for a TPU topology is traced where the default
    backend is a CPU. Raises `UserError` on an unknown platform.
    """
    if platform is None:
        device = jax.sharding.get_abstract_mesh().abstract_device
        platform = jax.default_backend() if device is None else device.platform
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
    if platform not in PLATFORMS:
        raise UserError(f"platform={platform!r} is unknown; permitted: {', '.join(PLATFORMS)}")
    return platform


def processors() -> int:
    """How many threads XLA computes with on a CPU: one for every processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


@contextlib.contextmanager
def optimization_level(level: str) -> Iterator[None]:
    """Compile with another effort: O0 to O3, or UNKNOWN for the compiler's default. Compilers for TPUs heed it."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)
