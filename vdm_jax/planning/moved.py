"""Bytes that one call of a stage's program must move at the least, counted from shapes, so that no compiler decides.

Memory, per device. A train step reads and writes parameters, optimizer state and average once, reads the other
networks of a distillation once, writes and reads each gradient once per micro-batch (clipping needs all gradients
before the first update), reads its batch once, and writes and reads once what the backward pass needs of the forward
pass: an even share of the results of products and convolutions (of blocks that are recomputed: of their inputs).
Sampling reads the parameters once per evaluation of the network, in the type of its products, and reads and writes the
video once per evaluation. Everything else may stay on the chip.

Links, per device. Split parameters are gathered once and gradients are summed over the devices that share the work,
both in the type of the network's products. What activations exchange over `tensor` and `context` is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import Mesh

from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.remat import BLOCK_INPUT, keep_dots
from vdm_jax.parallel.gathers import split_axes
from vdm_jax.planning.inputs import device_bytes
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import abstract_weights
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.parameters import network_params
from vdm_jax.stages.stage import Stage
from vdm_jax.training.perceptual import abstract_fixed
from vdm_jax.training.state import TrainState
from vdm_jax.training.trainable import merged, split

WORK_AXES = ("data", "fsdp", "context")  # devices along these hold different parts of the batch


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes per device and call, at the least."""

    state: int  # parameters, optimizer, average, other networks of a distillation
    gradients: int
    inputs: int  # the batch, weights of an autoencoder
    activations: int  # training: saved for the backward pass; sampling: the noisy video of every step
    sent: int  # to devices of the same slice
    sent_far: int  # to other slices

    @property
    def memory(self) -> int:
        """Bytes read from and written to the device's memory."""
        return self.state + self.gradients + self.inputs + self.activations


def training_bytes(stage: Stage, state: TrainState, batch: dict[str, Any], mesh: Mesh, far: tuple[str, ...],
                   saved: int | None = None) -> Moved:
    """What a train step moves.

    Args:
      state: shapes with shardings, as `abstract_state` gives them.
      batch: shapes of the global batch, split over the mesh.
      far: mesh axes that cross slices.
      saved: bytes that the backward pass of the whole batch needs; those of `saved_bytes` by default.
    """
    trained, frozen = split(state.params, stage.training.trained)
    saved = saved_bytes(stage, batch, state.params, mesh) if saved is None else saved
    sent, sent_far = _sent(state.params, trained, mesh, _itemsize(stage), far)
    return Moved(
        state=2 * device_bytes((trained, state.opt_state, state.ema))
        + device_bytes((frozen, getattr(state, "networks", {}))),
        gradients=2 * stage.training.accumulation * device_bytes(trained),
        inputs=device_bytes((batch, *abstract_fixed(stage, mesh))),
        activations=2 * saved // mesh.size, sent=sent, sent_far=sent_far)


def least_memory(moved: Mapping[str, int], accumulation: int) -> int:
    """Bytes that a train step of so many micro-batches keeps at a time at the least, per device, from the fields of
    `Moved`: the state, gradients, and the inputs and saved activations of one micro-batch."""
    return (moved["state"] // 2 + moved["gradients"] // 2 // accumulation
            + (moved["activations"] // 2 + moved["inputs"]) // accumulation)


def sampling_bytes(stage: Stage, sampling: Sampling, params: Any, inputs: Any, size: int, mesh: Mesh) -> Moved:
    """What sampling `size` videos moves; `params` and `inputs` are shapes with shardings."""
    evaluations = sampling.evaluations(stage.shape[0])
    whole = sum(leaf.size for leaf in jax.tree.leaves(params)) // mesh.shape["tensor"]
    sent, _ = _sent(params, {}, mesh, _itemsize(stage), ())
    return Moved(
        state=evaluations * min(4, _itemsize(stage)) * whole, gradients=0, inputs=device_bytes(inputs),
        activations=evaluations * 2 * 4 * size * math.prod(stage.shape) // mesh.size, sent=sent, sent_far=0)


def saved_bytes(stage: Stage, batch: dict[str, Any], params: Any, mesh: Mesh) -> int:
    """Bytes that the backward pass of a whole batch needs of the forward pass, on all devices, from a trace of the
    network.

    Without recomputation and with `dots`: results of products and convolutions, from which additions, norms and
    activations follow. With `full` and `offload`: the inputs of blocks.
    """
    spec, policy = stage.network, keep_dots if stage.network.remat == "dots" else _keep_products
    if spec.remat in ("full", "offload"):
        spec = spec.rematerialised("offload")  # names the inputs of blocks
        policy = jax.checkpoint_policies.save_only_these_names(BLOCK_INPUT)
    images = batch["images"].shape[1] if "images" in batch else 0
    with jax.set_mesh(mesh):
        key = jax.eval_shape(lambda: jax.random.key(0))  # a true one would be computed on devices that may not be there
        x, conditioning = jax.eval_shape(lambda b, key, *weights: training_inputs(stage, b, key, *weights)[:2],
                                         batch, key, *abstract_weights(stage.latent))
        level = jax.ShapeDtypeStruct(x.shape[:1], "float32")
        module = network_module(spec)

        def network(trained: Any, frozen: Any, z: Any, logsnr: Any, conditioning: Any) -> Any:
            params = network_params(stage, merged(trained, frozen))
            return module.apply({"params": params}, z, logsnr, conditioning, images=images)

        shapes = split(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params),
                       stage.training.trained)
        return residual_bytes(network, policy, shapes, (x, level, conditioning))


def _keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
    """Products with weights, between activations, and convolutions."""
    return primitive.name in ("dot_general", "conv_general_dilated")


def residual_bytes(function: Callable[..., Any], policy: Any, params: tuple[Any, Any], inputs: tuple[Any, ...]) -> int:
    """Bytes of what the derivative of `function(trained, frozen, *inputs)` by `trained` keeps under a policy of
    `jax.checkpoint`, without arguments and without what does not depend on the inputs."""
    kept = jax.checkpoint(function, policy=policy)

    def backward(trained: Any, frozen: Any, *inputs: Any) -> Any:
        return jax.vjp(lambda p: kept(p, frozen, *inputs), trained)[1]  # a tree whose leaves are what it keeps

    jaxpr = jax.make_jaxpr(backward)(*params, *inputs).jaxpr
    count = len(jax.tree.leaves(params))
    depends = {id(v) for v in jaxpr.invars[count:]}
    for equation in jaxpr.eqns:
        if any(id(v) in depends for v in equation.invars):
            depends |= {id(v) for v in equation.outvars}
    arguments = {id(v) for v in jaxpr.invars}
    found = {id(v): v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    return sum(v.aval.size * v.aval.dtype.itemsize for key, v in found.items()
               if key in depends and key not in arguments)


def _sent(params: Any, trained: Any, mesh: Mesh, itemsize: int, far: tuple[str, ...]) -> tuple[int, int]:
    """Bytes that a device sends within its slice and beyond for gathers of parameters and sums of gradients, at the
    least (see `traffic.SENT`)."""
    slices = _slices(mesh) if far == ("data",) else 1
    near = beyond = 0.0
    for leaf in jax.tree.leaves(params):
        gathered, _, _, size = _parts(leaf, mesh, itemsize)
        near += size * (gathered - 1) / gathered
    for leaf in jax.tree.leaves(trained):
        gathered, copies, within, size = _parts(leaf, mesh, itemsize)
        near += size * (gathered - 1) / gathered
        shard = size / gathered
        across = 2 * (slices - 1) / slices * shard / max(copies // slices, 1) if copies > 1 else 0.0
        near += 2 * (copies - 1) / copies * shard - across
        beyond += across
    return int(near), int(beyond)


def _parts(leaf: Any, mesh: Mesh, itemsize: int) -> tuple[int, int, int, float]:
    """Of a parameter: devices over which it is split and gathered, copies that sum their gradients, devices that split
    its use, and bytes of the gathered array."""
    names = {name for part in leaf.sharding.spec for name in ((part,) if isinstance(part, str) else part or ())}
    gathered = math.prod(mesh.shape[axis] for axis in split_axes(mesh) if axis in names)
    copies = math.prod(mesh.shape[axis] for axis in WORK_AXES if axis not in names)
    within = mesh.shape["tensor"] if "tensor" in names else 1
    return gathered, copies, within, leaf.size * min(itemsize, leaf.dtype.itemsize) / within


def _slices(mesh: Mesh) -> int:
    return len(np.unique([getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat]))


def _itemsize(stage: Stage) -> int:
    return jnp.dtype(stage.network.dtype).itemsize
