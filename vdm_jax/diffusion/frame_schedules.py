"""Scheduling matrices: which noise level each frame of a video has at each call of the network.

Rows are calls, columns are frames, entries are steps that remain: all of them in the first row, none after the last
call. A call takes every frame from its entry to that of the next row (Diffusion Forcing: Chen et al. 2024, arXiv
2407.01392, section 3.2).
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from vdm_jax.configuration import Count, NonNegative, Range, config
from vdm_jax.diffusion.steps import Step
from vdm_jax.errors import UserError

Remaining = Annotated[int, Range(least=0, cap=10**6)]


@config
class FrameSchedule:
    """A scheduling matrix, by name or as it is."""

    # full_sequence: all frames together, the ordinary sampler; autoregressive: one after the other; pyramid: each `lag`
    # steps behind the one before it; trapezoid: from both ends to the middle; matrix: its rows
    order: Literal["full_sequence", "autoregressive", "pyramid", "trapezoid", "matrix"] = "pyramid"
    lag: NonNegative = 1.0  # steps, of pyramid and trapezoid; parts of steps add up over frames
    chunk: Count = 1  # frames that go together
    rows: tuple[tuple[Remaining, ...], ...] = ()  # of "matrix", from all steps to 0

    def __post_init__(self):
        if (self.order == "matrix") != bool(self.rows):
            raise UserError(f"FrameSchedule.rows of {len(self.rows)} with order={self.order!r}; permitted: rows "
                            "exactly for 'matrix'", "FrameSchedule.rows")

    def matrix(self, steps: int, frames: int) -> Int[np.ndarray, "R T"]:
        """Steps that remain, for videos of `frames` frames. Raises `UserError` for rows that do not go from `steps` to
        0 without a way back, or are of another number of frames."""
        if self.order == "matrix":
            return self._checked(steps, frames)
        place = np.arange(frames) // self.chunk
        if self.order == "trapezoid":
            place = np.minimum(place, place[::-1])
        lag = {"full_sequence": 0.0, "autoregressive": float(steps)}.get(self.order, self.lag)
        behind = np.floor(place * lag).astype(int)
        return np.clip(steps + behind - np.arange(steps + behind.max() + 1)[:, None], 0, steps)

    def _checked(self, steps: int, frames: int) -> Int[np.ndarray, "R T"]:
        lengths = sorted({len(row) for row in self.rows})
        if lengths != [frames]:
            raise UserError(f"FrameSchedule.rows of {', '.join(map(str, lengths))} frames for videos of {frames}; "
                            f"permitted: {frames}", "FrameSchedule.rows")
        found = np.array(self.rows)
        if (found[0] != steps).any() or found[-1].any() or (np.diff(found, axis=0) > 0).any():
            raise UserError(f"FrameSchedule.rows from {found[0].tolist()} to {found[-1].tolist()}; permitted: from "
                            f"{steps}, the steps of the sampler, to 0, and never up", "FrameSchedule.rows")
        return found


def steps_of_matrix(levels: Float[ArrayLike, " steps"], matrix: Int[np.ndarray, "R T"]) -> Step:
    """The steps of a sampler, from row to row of a matrix: levels of single frames. A frame that has not begun waits at
    the first of `levels`, one that is finished is shown at the last."""
    levels, count = jnp.asarray(levels), len(levels)
    previous = jnp.concatenate([levels[:1] - 1, levels[:-1]])
    at = np.minimum(count - matrix[:-1], count - 1)
    after = np.minimum(count - matrix[1:], count - 1)
    moves = matrix[1:] != matrix[:-1]
    last = moves & (matrix[1:] == 0)
    beyond = levels[-1] + 1  # what `sampling.steps_between` has next to the last level
    following = jnp.where(last, beyond, levels[after])
    return Step(jnp.arange(len(at)), previous[at], levels[at], jnp.where(moves, following, levels[at]),
                jnp.asarray(last), None)
