"""Whether a stage fits into the memory of the devices, asked before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.errors import UserError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.planning.advice import advice, capacity_of
from vdm_jax.planning.chips import GIB
from vdm_jax.planning.inputs import device_bytes, training_batch
from vdm_jax.planning.moved import saved_bytes
from vdm_jax.planning.program import Plan, about, memory, refused, state_sizes
from vdm_jax.stages.autoencoding import AnyExperiment, AnyStage, AutoencoderStage
from vdm_jax.stages.stage import Stage
from vdm_jax.training.state import TrainState, abstract_state
from vdm_jax.training.step import CompileStep
from vdm_jax.training.trainable import split

ANYWAY = "or --no-plan to try anyway"
KEPT = 10_000  # no network keeps more bytes for its backward pass per byte of a batch; what is smaller is not traced


def check_before(experiment: AnyExperiment, stage: AnyStage) -> None:
    """Refuse a stage whose state, gradients and saved activations are more than the devices' memory, by an estimate
    from shapes, which is below what the compiler finds. Raises `UserError` with the estimate, the limit and what would
    fit."""
    mesh = make_mesh(experiment.mesh)
    capacity = capacity_of(mesh.devices.flat[0])
    if capacity is None:
        return
    state = abstract_state(stage, mesh)
    gradients = state.params if isinstance(stage, AutoencoderStage) else split(state.params, stage.training.trained)[0]
    needed = device_bytes((state.params, state.opt_state, state.ema, getattr(state, "networks", {}), gradients))
    if needed <= capacity and isinstance(stage, Stage):
        needed += _activations(experiment, stage, state, mesh, capacity - needed)
    if needed > capacity:
        raise UserError(too_large(experiment, stage, mesh, "at least", needed, capacity, state))


def checked_compile(experiment: AnyExperiment, stage: Stage) -> CompileStep:
    """A function that compiles the train step of a stage and refuses it, before its first call, when the compiler says
    that it needs more memory than a device has. Raises `UserError` as `check_before` does."""
    def compiled(mesh: Mesh, compile_step: Callable[[], jax.stages.Compiled]) -> jax.stages.Compiled:
        device = mesh.devices.flat[0]
        capacity = capacity_of(device)
        try:
            program = compile_step()
        except jax.errors.JaxRuntimeError as error:
            found = refused(error)  # raises it again where memory was not the reason
            needed, limit = found.get("memory", {}).get("needed"), found.get("compiler_limit", capacity)
        else:
            needed, limit = memory(program, device.platform)["needed"], capacity
            if limit is None or needed <= limit:
                return program
        raise UserError(too_large(experiment, stage, mesh, "by the compiler's account", needed, limit))

    return compiled


def too_large(experiment: AnyExperiment, stage: AnyStage, mesh: Mesh, how: str, needed: int | None,
              capacity: int | None, state: TrainState | None = None) -> str:
    """What is said of a stage that does not fit: what it needs, what there is, what would help, the cheapest first."""
    size = "more memory than there is" if needed is None else f"{needed / GIB:.2f} GiB per device {how}"
    has = "" if capacity is None else f", and a device has {capacity / GIB:.2f} GiB"
    what = f"stage {stage.name!r} of {stage.training.batch_size} clips on {mesh.size} devices needs {size}{has}"
    if isinstance(stage, AutoencoderStage):
        return f"{what}; permitted: more devices, with --mesh.fsdp; a smaller training.batch_size; {ANYWAY}"
    plan = Plan(experiment=experiment.name, stage=stage, data=experiment.data, mesh=experiment.mesh)
    state = abstract_state(stage, mesh) if state is None else state
    report = {**about(plan, mesh), **state_sizes(plan, state), "status": "out of memory", "capacity": capacity,
              "memory": {} if needed is None else {"needed": needed}}
    return f"{what}; permitted: {'; '.join(advice(report))}; {ANYWAY}"


def _activations(experiment: AnyExperiment, stage: Stage, state: TrainState, mesh: Mesh, left: int) -> int:
    """Bytes per device that the backward pass of a micro-batch keeps, at the least; 0 where they are sure to fit into
    what is `left`, since tracing a network takes seconds."""
    tokens = experiment.data.length if isinstance(experiment.data, WithEmbeddings) else 1
    batch, _ = training_batch(stage, experiment.data, stage.training.batch_size, tokens)
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(batch)) // mesh.size
    if KEPT * size <= left:
        return 0
    saved: Any = saved_bytes(stage, batch, state.params, mesh)
    return saved // mesh.size // stage.training.accumulation
