"""Tokens spread over devices: what every context shares.

The frames of a clip are split over the mesh axis `context`, in order and evenly. A context is a function that runs on
every device with the device's own frames and says which frames, heads or positions are exchanged; batch and heads stay
split as they are (`data`, `fsdp`, `tensor`), where they divide. On one device, or without a mesh, there is nothing to
exchange and `attend` computes with the local kernel alone, so that a config runs unchanged on a workstation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from vdm_jax.attention.block_mask import ExtraKeys, SequenceLayout
from vdm_jax.attention.kernels import KERNELS
from vdm_jax.errors import UserError
from vdm_jax.parallel.rules import AXIS_RULES

AXIS = "context"


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a context, as every device sees it."""

    context: str
    kernel: str
    layout: SequenceLayout  # of the whole clip
    devices: int  # along the context axis
    own: bool  # whether the own tokens are seen at all

    @property
    def frames(self) -> int:
        """Frames per device."""
        return self.layout.shape[0] // self.devices

    @property
    def local(self) -> SequenceLayout:
        """The view of a device's own frames, for layouts only: its relation is not that of the clip."""
        return SequenceLayout(self.layout.pattern, (self.frames, *self.layout.shape[1:]))

    def ids(self, device: Any) -> Int[ArrayLike, " ..."]:
        """Numbers in the clip of a device's frames; numpy or jax."""
        return device * self.frames + np.arange(self.frames)

    def alone(self, q, k, v, **more) -> Float[Array, "B F H W K D"]:
        """The kernel on a device's own frames, for what needs no other ones."""
        return KERNELS[self.kernel](q, k, v, self.local, **more, own=self.own)


@dataclasses.dataclass(frozen=True)
class Context:
    """A context's function of one device, `run(call, q, k, v, bias=, frame_valid=, extra_keys=)`, and what it is given.

    Queries, keys and values come with the device's frames, frame validity of the whole clip.
    """

    run: Callable[..., Array]
    bias: Literal["rows", "heads", "sequences"] | None = None  # how a bias is split over the context axis
    extra: Literal["frames", "heads", "whole"] = "frames"  # how outside tokens are
    check: Callable[[Call, int], None] | None = None  # refuses what cannot be split, from the heads of a device


def context_size() -> int:
    """Devices along the context axis of the mesh in context; 1 without a mesh or such an axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape.get(AXIS, 1)


def run_sharded(
    context: Context,
    call: Call,
    q: Float[Array, "B T H W K D"],
    k: Float[Array, "B T H W K D"],
    v: Float[Array, "B T H W K D"],
    *,
    bias: Float[Array, "*rest K Q S"] | None = None,
    frame_valid: Bool[Array, "B T"] | None = None,
    extra_keys: ExtraKeys | None = None,
) -> Float[Array, "B T H W K D"]:
    """Run a context on the mesh in context.

    Raises `UserError` when frames, or heads that the context splits, do not divide. Batch and heads that the other
    axes do not divide are kept whole: every device then computes all of them.
    """
    frames = call.layout.shape[0]
    if frames % call.devices:
        raise UserError(f"attention context={call.context!r} cannot split {frames} frames over mesh axis "
                        f"{AXIS}={call.devices}; permitted: multiples of {call.devices}")
    mesh = jax.sharding.get_abstract_mesh()
    batch, heads = axes_of("batch", q.shape[0]), axes_of("heads", q.shape[4])
    if context.check is not None:
        context.check(call, q.shape[4] // math.prod(mesh.shape[axis] for axis in heads))
    tokens = P(batch, AXIS, None, None, heads, None)
    arrays, specs = {"q": q, "k": k, "v": v}, dict.fromkeys("qkv", tokens)
    if frame_valid is not None:
        arrays["frame_valid"], specs["frame_valid"] = frame_valid, P(batch, None)
    if bias is not None:
        arrays["bias"] = _sequences_in_front(bias, call.layout, q.shape[0])
        if context.bias == "sequences" and arrays["bias"].shape[1] > 1:
            padding = -call.layout.tokens % call.devices
            arrays["bias"] = jnp.pad(arrays["bias"], ((0, 0), (0, padding), *((0, 0),) * 3))
        specs["bias"] = _bias_spec(context.bias, arrays["bias"].shape, batch, heads)
    if extra_keys is not None:
        groups = AXIS if context.extra == "frames" and extra_keys.k.shape[1] > 1 else None
        kept = (*heads, AXIS) if context.extra == "heads" else heads
        keys = P(batch, groups, None, kept, None)
        arrays["extra_keys"], specs["extra_keys"] = extra_keys, ExtraKeys(keys, keys, None
                                                                          if extra_keys.mask is None else
                                                               P(batch, groups, None))

    def device(arrays):
        if "bias" in arrays:
            arrays = arrays | {"bias": arrays["bias"].reshape(-1, *arrays["bias"].shape[2:])}
        return context.run(call, **arrays)

    return jax.shard_map(device, mesh=mesh, in_specs=(specs,), out_specs=tokens, check_vma=False)(arrays)


def axes_of(name: str, size: int) -> tuple[str, ...]:
    """Mesh axes over which a dimension is split: those of its logical axis, or none if they do not divide it."""
    mesh, parts = jax.sharding.get_abstract_mesh(), 1
    axes = tuple(axis for axis in AXIS_RULES[name] or () if axis in mesh.shape)
    for axis in axes:
        parts *= mesh.shape[axis]
    return axes if size % parts == 0 else ()  # axes of size 1 stay: gradients are summed over those left out


def _sequences_in_front(bias: Array, layout: SequenceLayout, batch: int) -> Float[Array, "B P K Q S"]:
    """A bias with its samples and places apart: one for all (B = P = 1), one per sample, or one per position."""
    if bias.ndim == 3 or bias.shape[0] == 1:
        return bias.reshape(1, 1, *bias.shape[-3:])
    places = layout.tokens if layout.pattern.layout == "positions" else 1
    return bias.reshape(batch, places, *bias.shape[1:])


def _bias_spec(how: str, shape: tuple[int, ...], batch: tuple[str, ...], heads: tuple[str, ...]) -> P:
    samples = batch if shape[0] > 1 else None
    if how == "rows":
        return P(samples, None, heads, AXIS, None)
    if how == "heads":
        return P(samples, None, (*heads, AXIS), None, None)
    return P(samples, AXIS if shape[1] > 1 else None, heads, None, None)
