"""The program of a case: attention, and its gradients, compiled for the devices of a mesh."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from vdm_jax.attention import attend
from vdm_jax.attention.linear import linear_attend
from vdm_jax.benchmark.cases import LINEAR, Case
from vdm_jax.benchmark.machine import GIB, platform_of
from vdm_jax.errors import UserError
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import spec

LOGICAL_AXES = ("batch", "frames", None, None, "heads", None)  # of [B, T, H, W, K, D]


class Unfit(Exception):
    """The case cannot be measured here; the message says why, for its row."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled case."""

    case: Case
    kernel: str  # the one that `auto` chose
    mesh: Mesh
    sharding: NamedSharding  # of every input
    compiled: Any
    compile_seconds: float

    def memory(self) -> dict[str, int]:
        """Bytes per device as the compiler reports them; the total is arguments, outputs and temporaries."""
        stats = self.compiled.memory_analysis()
        fields = {"arguments": "argument", "outputs": "output", "temporaries": "temp", "code": "generated_code"}
        found = {name: int(getattr(stats, f"{field}_size_in_bytes")) for name, field in fields.items()}
        found["total"] = found["arguments"] + found["outputs"] + found["temporaries"]
        peak = int(getattr(stats, "peak_memory_in_bytes", 0))
        return {**found, "peak": peak} if peak else found

    def inputs(self) -> list[jax.Array]:
        """Random queries, keys, values and, for the backward pass, the cotangent of the output."""
        def make(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, self.case.array_shape, jnp.dtype(self.case.dtype))

        call = jax.jit(make, out_shardings=self.sharding)
        return [call(jax.random.key(i)) for i in range(_inputs(self.case))]


def mesh_of(case: Case, devices: Sequence[jax.Device], mesh: MeshSpec, *, spread: bool) -> Mesh:
    """The mesh of a case.

    With a context the one asked for. Without, tokens stay whole: one device, or with `spread` (compiling for a
    topology) as many as samples and heads can be split over, with the same work done by the rest.
    """
    if case.context != "none":
        return make_mesh(mesh, devices)
    if not spread:
        return make_mesh(MeshSpec(data=1), devices[:1])
    data = math.gcd(case.batch, len(devices))
    tensor = math.gcd(case.heads, len(devices) // data)
    return make_mesh(MeshSpec(data=data, tensor=tensor, context=-1), devices)


def check(case: Case, mesh: Mesh, limit: int | None) -> str:
    """The kernel that serves the case. Raises `Unfit` when none does, when devices do not divide the arrays, or when
    the least memory that a device needs is above `limit` bytes."""
    platform = platform_of(mesh.devices.flat[0])
    try:
        kernel = case.resolved(platform)
        sharding, least = _sharding(case, mesh), case.least_bytes(kernel, platform)
    except UserError as error:
        raise Unfit(str(error)) from None
    parts = math.prod(mesh.shape[a] for names in sharding.spec if names for a in names_of(names))
    if limit is not None and least // parts > limit:
        raise Unfit(f"does not fit: needs at least {least / parts / GIB:.1f} GiB, limit {limit / GIB:.1f} GiB")
    return kernel


def names_of(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Mesh axes of one entry of a PartitionSpec."""
    return (names,) if isinstance(names, str) else names


def build(case: Case, mesh: Mesh, limit: int | None = None) -> Program:
    """Compile a case. Raises `Unfit` for what the table does not list and for what takes more than `limit` bytes per
    device."""
    kernel = check(case, mesh, limit)
    sharding = _sharding(case, mesh)
    x = jax.ShapeDtypeStruct(case.array_shape, jnp.dtype(case.dtype), sharding=sharding)
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        try:
            call = jax.jit(_function(case), compiler_options=compiler_options(mesh))
            compiled = call.lower(*[x] * _inputs(case)).compile()
        except UserError as error:
            raise Unfit(str(error)) from None
        except jax.errors.JaxRuntimeError as error:
            raise Unfit(out_of_memory(error)) from None
        seconds = time.perf_counter() - start
    program = Program(case, kernel, mesh, sharding, compiled, seconds)
    total = program.memory()["total"]
    if limit is not None and total > limit:
        raise Unfit(f"does not fit: the compiled program needs {total / GIB:.1f} GiB, limit {limit / GIB:.1f} GiB")
    return program


def out_of_memory(error: Exception) -> str:
    """Reason of a row from an out-of-memory error of the compiler or the device; any other error is raised again."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
        raise error
    return f"does not fit: {text[:200]}"


def _function(case: Case) -> Callable[..., Any]:
    def forward(q, k, v):
        if case.kernel == LINEAR:
            return linear_attend(q, k, v, pattern=case.pattern)
        return attend(q, k, v, pattern=case.pattern, kernel=case.kernel, context=case.context)

    def both(q, k, v, cotangent):
        out, pull = jax.vjp(forward, q, k, v)
        return out, pull(cotangent)

    return forward if case.mode == "forward" else both


def _inputs(case: Case) -> int:
    return 3 if case.mode == "forward" else 4


def _sharding(case: Case, mesh: Mesh) -> NamedSharding:
    axes = tuple(None if axis == "frames" and case.context == "none" else axis for axis in LOGICAL_AXES)
    partition = spec(axes, mesh)
    for name, size, names in zip(("batch", "frames", "height", "width", "heads"), case.array_shape, partition,
                                 strict=False):
        parts = math.prod(mesh.shape[a] for a in names_of(names or ()))
        if size % parts:
            raise UserError(f"{name}={size} does not divide over {parts} devices; permitted: multiples of {parts}")
    return NamedSharding(mesh, partition)
