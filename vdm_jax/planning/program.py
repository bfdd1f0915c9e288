"""A stage's real program, train step or sampler, compiled ahead of time and read: the contents of a report."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vdm_jax.errors import UserError
from vdm_jax.generation.compiled import jit_sampling
from vdm_jax.generation.one_stage import sampling_parts
from vdm_jax.parallel.collectives import listed
from vdm_jax.parallel.compiling import no_compilation_cache, optimization_level
from vdm_jax.parallel.gathers import check_gathers, check_shards
from vdm_jax.parallel.mesh import AXES, MeshSpec, make_mesh
from vdm_jax.parallel.rules import batch_parts
from vdm_jax.planning.chips import chip_of
from vdm_jax.planning.flops import Work, sampling_work, training_work
from vdm_jax.planning.inputs import device_bytes, sampling_inputs, training_batch
from vdm_jax.planning.moved import Moved, sampling_bytes, training_bytes
from vdm_jax.planning.roofline import Load, as_compiled, roofline, split_sent
from vdm_jax.planning.traffic import traffic
from vdm_jax.stages.latent import abstract_weights
from vdm_jax.stages.options import DataSet
from vdm_jax.stages.stage import Stage
from vdm_jax.training.perceptual import abstract_fixed
from vdm_jax.training.state import TrainState, abstract_state
from vdm_jax.training.step import jit_train_step

# XLA's optimization level per effort; UNKNOWN is its default. Little effort takes a fifth to a half of the time of full
# effort for U-Nets, gives the same FLOPs and about the same memory, and a slower program, which nobody runs.
EFFORTS = {"fast": "O0", "full": "UNKNOWN"}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compiled: everything that decides about the program, as data."""

    experiment: str  # name
    stage: Stage
    data: DataSet
    mesh: MeshSpec
    what: Literal["train", "sample"] = "train"
    topology: str | None = None  # name of TPU slices; None: the devices at hand
    effort: Literal["fast", "full"] = "fast"
    flags: tuple[tuple[str, str], ...] = ()  # XLA flags: name without dashes, value
    text_tokens: int = 128  # of texts that arrive as embeddings

    @property
    def batch(self) -> int:
        """Clips per call, over all devices."""
        return self.stage.training.batch_size if self.what == "train" else self.stage.sampling.batch_size

    def with_batch(self, size: int) -> Plan:
        """The same with another global batch."""
        part = "training" if self.what == "train" else "sampling"
        changed = dataclasses.replace(getattr(self.stage, part), batch_size=size)
        return dataclasses.replace(self, stage=dataclasses.replace(self.stage, **{part: changed}))

    def with_remat(self, remat: Any) -> Plan:
        """The same with another setting of rematerialisation."""
        network = self.stage.network.rematerialised(remat)
        return dataclasses.replace(self, stage=dataclasses.replace(self.stage, network=network))


def plan_mesh(spec: MeshSpec, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of a plan. Over several slices that the spec does not place itself, the slices split the data axis, so
    that only gradients cross the network between them. Raises `UserError` when the data axis does not divide."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or any(getattr(spec, field.name) != 1 for field in dataclasses.fields(spec)
                          if field.name.startswith("dcn_")):
        return make_mesh(spec, devices)
    known = math.prod(size for size in spec.sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in spec.sizes]
    if math.prod(sizes) != len(devices) or sizes[0] % slices:
        shown = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise UserError(f"MeshSpec {shown} does not fit {slices} slices of {len(devices) // slices} devices; "
                        f"permitted: sizes that multiply to {len(devices)}, with data a multiple of {slices}")
    inside, across = [sizes[0] // slices, *sizes[1:]], [slices] + [1] * (len(sizes) - 1)
    grid = mesh_utils.create_hybrid_device_mesh(inside, across, list(devices), allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def unit_of_batches(plan: Plan, mesh: Mesh) -> int:
    """What a plan's batch must be a multiple of."""
    if plan.what == "sample":
        return sampling_parts(plan.stage, plan.stage.sampling, mesh)
    return batch_parts(mesh) * plan.stage.training.accumulation


def compile_plan(plan: Plan, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Compile a plan for devices that need not be there, and describe the program as plain data.

    Nothing is allocated. `status` is "compiled", or "out of memory" when the compiler itself refuses, with what it
    needs where it says so. Raises `UserError` for a mesh, batch or network that does not divide.
    """
    mesh = plan_mesh(plan.mesh, devices)
    parts = unit_of_batches(plan, mesh)
    if plan.batch % parts:
        raise UserError(f"batch {plan.batch} does not divide over {batch_parts(mesh)} devices"
                        f"{' and the micro-batches' if parts > batch_parts(mesh) else ''}; permitted: multiples of "
                        f"{parts}")
    state = _state(plan, mesh)
    batch, notes = training_batch(plan.stage, plan.data, plan.batch, plan.text_tokens, mesh)
    if plan.what == "train" and plan.stage.training.trained:
        notes.append("FLOPs are counted as if all parameters were trained: an upper bound; the step time at best takes "
                     "the forward pass alone")
    if plan.what == "train" and (sums := check_shards(state.params, mesh)):
        notes.append(sums)
    report = {**about(plan, mesh), **state_sizes(plan, state), "notes": notes, "warnings": []}
    start = time.perf_counter()
    if plan.what == "train":
        program, inputs = jit_train_step(plan.stage, mesh), (state, batch, *abstract_fixed(plan.stage, mesh))
    else:
        shardings = jax.tree.map(lambda a: a.sharding, state.params)
        program = jit_sampling(plan.stage, plan.stage.sampling, mesh, shardings)
        inputs = (state.params, *sampling_inputs(plan.stage, plan.batch, plan.text_tokens, mesh),
                  *abstract_weights(plan.stage.latent, mesh))
    with jax.set_mesh(mesh):  # where nothing may run: the devices are not there
        lowered = program.lower(*inputs)
    report["trace_seconds"] = round(time.perf_counter() - start, 2)
    report |= counted_from_shapes(plan, mesh, state)
    start = time.perf_counter()
    try:
        # The cache of compiled programs cannot read back those of other platforms.
        with no_compilation_cache(), optimization_level(EFFORTS[plan.effort]):
            compiled = lowered.compile(dict(plan.flags))
    except jax.errors.JaxRuntimeError as error:
        report |= refused(error, plan.flags)
    else:
        report |= _read(plan, compiled, mesh, report["roofline"])
    report["compile_seconds"] = round(time.perf_counter() - start, 2)
    return report


def _state(plan: Plan, mesh: Mesh) -> TrainState:
    """The training state; what is sampled has no LoRA next to it, but merged into it."""
    stage = plan.stage
    if plan.what == "sample":
        stage = dataclasses.replace(stage, training=dataclasses.replace(stage.training, lora=()))
    return abstract_state(stage, mesh)


def about(plan: Plan, mesh: Mesh) -> dict[str, Any]:
    """What a report is of: stage, batch, mesh, devices, chip, effort, flags."""
    device, chip = mesh.devices.flat[0], chip_of(mesh.devices.flat[0])
    per_chip = chip.devices if chip else 1
    return {"experiment": plan.experiment, "stage": plan.stage.name, "what": plan.what, "batch": plan.batch,
            "accumulation": plan.stage.training.accumulation, "remat": plan.stage.network.remat,
            "remat_field": plan.stage.network.remat_field,
            "frames": plan.stage.video.frames, "steps": plan.stage.training.steps,
            "dtype": plan.stage.network.dtype, "mesh": dict(mesh.shape),
            "batch_parts": batch_parts(mesh), "topology": plan.topology, "platform": device.platform,
            "kind": device.device_kind, "chip": chip.name if chip else None, "devices": mesh.size,
            "chips": mesh.size // per_chip, "devices_per_chip": per_chip, "effort": plan.effort,
            "flags": dict(plan.flags)}


def state_sizes(plan: Plan, state: Any) -> dict[str, Any]:
    """Parameters, and bytes per device of what training keeps between steps; sampling keeps the parameters alone."""
    parts = {"parameters": state.params}
    if plan.what == "train":
        parts |= {"optimizer": state.opt_state, "ema": state.ema}
        if networks := getattr(state, "networks", {}):  # the others of a distillation
            parts["networks"] = networks
    return {"parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "state": {name: device_bytes(tree) for name, tree in parts.items()}}


def counted_from_shapes(plan: Plan, mesh: Mesh, state: TrainState | None = None) -> dict[str, Any]:
    """`flops`, `moved` and `roofline` (None for devices without published figures) of a plan, without compiling
    anything."""
    state = _state(plan, mesh) if state is None else state
    work, moved = _work(plan, state.params, mesh), _moved(plan, state, mesh)
    flops = {**work.to_data(), "model_per_device": work.model / mesh.size,
             "computed_per_device": work.computed / mesh.size}
    chip, bound = chip_of(mesh.devices.flat[0]), None
    if chip is not None:
        bound = roofline(Load(work.model / mesh.size, work.least / mesh.size, moved.memory, moved.sent,
                              moved.sent_far), chip)
    return {"flops": flops, "moved": {**dataclasses.asdict(moved), "memory": moved.memory}, "roofline": bound}


def _work(plan: Plan, params: Any, mesh: Mesh) -> Work:
    if plan.what == "train":
        batch, _ = training_batch(plan.stage, plan.data, plan.batch, plan.text_tokens)
        return training_work(plan.stage, batch, params, mesh)
    # Samples are whole videos on their own.
    training = dataclasses.replace(plan.stage.training, images_per_clip=0, crop=None)
    alone = dataclasses.replace(plan.stage, training=training)
    batch, _ = training_batch(alone, plan.data, plan.batch, plan.text_tokens)
    return sampling_work(alone, plan.stage.sampling, batch, params, mesh)


def _moved(plan: Plan, state: TrainState, mesh: Mesh) -> Moved:
    if plan.what == "train":
        batch, _ = training_batch(plan.stage, plan.data, plan.batch, plan.text_tokens, mesh)
        return training_bytes(plan.stage, state, batch, mesh, far_axes(mesh))
    inputs = sampling_inputs(plan.stage, plan.batch, plan.text_tokens, mesh)
    return sampling_bytes(plan.stage, plan.stage.sampling, state.params,
                          (inputs, abstract_weights(plan.stage.latent, mesh)), plan.batch, mesh)


def _read(plan: Plan, compiled: Any, mesh: Mesh, bound: dict[str, Any] | None) -> dict[str, Any]:
    """What a compiled program says of itself."""
    text, device = compiled.as_text(), mesh.devices.flat[0]
    rows, far = traffic(listed(text), dict(mesh.shape)), far_axes(mesh)
    found = {"status": "compiled", "memory": memory(compiled, device.platform), "collectives": rows,
             "axes_between_slices": list(far), "as_compiled": None}
    if bound is not None:
        found["as_compiled"] = as_compiled(bound, *split_sent(rows, far), chip_of(device))
    return {**found, "warnings": check_gathers(text, mesh) if plan.what == "train" else []}


def memory(compiled: Any, platform: str) -> dict[str, int]:
    """Bytes per device as the compiler reports them.

    `needed` is what decides whether the program fits, and the sum of `arguments`, `new_outputs` (those that do not take
    the place of arguments), `alive` (temporaries at the peak) and `code`. On TPU the peak is the compiler's, which
    holds arguments; elsewhere all `temporaries` count, since the peak that those compilers state leaves them out.
    """
    stats = compiled.memory_analysis()
    fields = {"arguments": "argument", "outputs": "output", "aliased": "alias", "temporaries": "temp",
              "code": "generated_code"}
    found = {name: int(getattr(stats, f"{field}_size_in_bytes")) for name, field in fields.items()}
    found["peak"] = int(getattr(stats, "peak_memory_in_bytes", 0))
    found["new_outputs"] = found["outputs"] - found["aliased"]
    alive = found["peak"] - found["arguments"] - found["new_outputs"]
    if platform != "tpu" or not found["peak"]:
        alive = max(alive, found["temporaries"])
    found["alive"] = max(alive, 0)
    return {**found, "needed": sum(found[name] for name in ("arguments", "new_outputs", "alive", "code"))}


def far_axes(mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which devices are in different slices."""
    slices = np.vectorize(lambda device: getattr(device, "slice_index", 0) or 0)(mesh.devices)
    return tuple(axis for i, axis in enumerate(mesh.axis_names)
                 if (slices != np.take(slices, [0], axis=i)).any())


def refused(error: Exception, flags: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """What a report says when the compiler runs out of memory. Raises `UserError` for a flag that it does not know, and
    any other error as it is."""
    text = " ".join(str(error).split())
    if "No such compile option" in text:
        named = [name for name, _ in flags if name in text] or [name for name, _ in flags]
        raise UserError(f"XLA flag {named[0] if named else text[:80]!r} is unknown to this compiler; permitted: flags "
                        "of its platform and version") from None
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        raise error
    space = re.search(r"memory space (\w+)", text)
    name = "hbm" if re.search(r"hbm", text, re.IGNORECASE) else space[1].lower() if space else "hbm"
    status = {"hbm": "out of memory", "vmem": "out of vector memory"}.get(name, f"out of {name}")
    found: dict[str, Any] = {"status": status, "reason": text[:400], "collectives": [], "as_compiled": None,
                             "roofline": None}
    sizes = [float(number) * UNITS[unit] for number, unit in re.findall(r"\b(\d+(?:\.\d+)?)([KMGT])\b", text)]
    if name == "hbm" and len(sizes) >= 2:
        found["memory"] = {"needed": int(sizes[0])}
        found["compiler_limit"] = int(sizes[1])
    return found
