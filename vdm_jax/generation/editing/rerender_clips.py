"""Clips by Rerender-A-Video: their key frames one after another, and the frames between them. A further clip of the
same video begins with the last frame of the clip before, and with what that carries over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Key

from vdm_jax.errors import UserError
from vdm_jax.generation.editing.one_stage import Edits, EditSampling
from vdm_jax.generation.editing.parts import each_row
from vdm_jax.generation.editing.propagation import between
from vdm_jax.generation.editing.rerender import Rerender
from vdm_jax.generation.editing.rerender_keys import Carry, KeyFrame, KeyFrames, Trajectory
from vdm_jax.stages.stage import Stage
from vdm_jax.video.arrays import to_float, to_uint8


def edit_by_key_frames(
    stage: Stage, how: EditSampling, again: bool, mesh: Mesh, shardings: Any
) -> Callable[..., Edits]:
    """`jit_edit` for clips of any number of frames by a stage that makes single ones: `(params, keys, captions, low,
    video, *autoencoder, carry=None) -> Edits`. Raises `UserError` for a way back to the given video."""
    if again:
        raise UserError(f"round_trip=True with method={how.method.name!r}, which begins with no inversion; permitted: "
                        "False", "Rerender.round_trip")
    key_frames = KeyFrames(stage, how, mesh, shardings)

    def function(
        params: Any, keys: Key[jax.Array, " B"], captions: Any, low: None, video: Float[np.ndarray, "B T H W 3"],
        *autoencoder: Any, carry: Carry | None = None,
    ) -> Edits:
        frames, made = np.asarray(to_uint8(video)), np.zeros(video.shape, np.float32)
        _check_carry(carry, frames)
        count, before = frames.shape[1], 0
        for place in how.method.key_frames(count, how.target.steps):
            if place or carry is None:
                texts = jax.tree.map(np.asarray, tuple(text.at_frames(np.array([place]), count) for text in captions))
                key = key_frames.make(params, keys, texts, frames[:, place], carry, *autoencoder)
                carry = Carry(key if carry is None else carry.first, key)
            made[:, place] = carry.previous.made
            if place > before + 1:
                made[:, before + 1:place] = _propagated(
                    frames[:, before:place + 1], made[:, before], made[:, place], how.method)
            before = place
        return Edits(made, None, carry)

    return function


def _propagated(
    frames: np.ndarray, first: Float[np.ndarray, "B H W 3"], last: Float[np.ndarray, "B H W 3"], method: Rerender
) -> Float[np.ndarray, "B T H W 3"]:
    """The frames between two key frames, the first and the last of the given ones."""
    ends, how = [np.asarray(to_uint8(end)) for end in (first, last)], (method.poisson, method.flows())
    return np.stack(each_row(lambda video, *pair: to_float(between(video, *pair, *how)), frames, *ends))


def _check_carry(carry: Carry | None, frames: np.ndarray) -> None:
    """Raise `UserError` for a clip that does not go on from the one before."""
    if carry is not None and not np.array_equal(carry.previous.source, frames[:, 0]):
        raise UserError("carry of another clip than the one before; permitted: that of a clip whose last frame is the "
                        "first one of this", "Rerender.carry")


def arrays_of(carry: Carry) -> dict[str, Any]:
    """What is carried over as a tree of arrays, to be stored."""
    return {name: {"source": key.source, "made": key.made, "x_hat": key.trajectory.x_hat,
                   "tokens": key.trajectory.tokens} for name, key in carry._asdict().items()}


def carry_of(arrays: dict[str, Any]) -> Carry:
    """The inverse of `arrays_of`; a method without tokens has none stored."""
    return Carry(**{name: KeyFrame(key["source"], key["made"], Trajectory(key.get("tokens", {}), key["x_hat"]))
                    for name, key in arrays.items()})
