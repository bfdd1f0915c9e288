"""Dense attention over the few frames that a frame sees: work and memory grow linearly with the clip."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, ArrayLike, Bool, Float

from vdm_jax.attention.block_mask import ExtraKeys, SequenceLayout
from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.attention.products import VisibleFrames

MOST_RUNS = 4  # of a slot on average, up to which slots are slices: each is an operation to compile


def attention(q, k, v, layout: SequenceLayout, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None,
              own: bool = True):
    """Attention of every frame over its gathered key frames; see `vdm_jax.attention.kernels` for the arguments.

    Each frame is a batch entry `[B, T, P, n, K, D]`: P = 1 and n = N for patterns over all tokens, P = N and n = 1 for
    patterns over one position.
    """
    split = "b t (p n) k d -> b t p n k d"
    places = layout.tokens if layout.pattern.layout == "positions" else 1

    def placed(a: Float[Array, "B T H W K D"]) -> Float[Array, "B T P N K D"]:
        return rearrange(a.reshape(*a.shape[:2], -1, *a.shape[4:]), split, p=places)

    sets = []
    if own:
        frames = layout.key_frames()
        mask = _mask(layout, frames, frame_valid)
        k, v = (gather_frames(placed(a), frames) for a in (k, v))
        sets.append(Keys(k, v, mask, _gather_bias(bias, layout, frames)))
    if extra_keys is not None:  # group of the frame, seen by all its places
        valid = None if extra_keys.mask is None else extra_keys.mask[:, :, None, None, None, :]
        sets.append(Keys(extra_keys.k[:, :, None], extra_keys.v[:, :, None], valid))
    out = dense(placed(q), *sets)
    return out.reshape(*out.shape[:2], *layout.shape[1:], *out.shape[4:])


def gather_frames(x: Float[Array, "B T P N K D"], frames: VisibleFrames) -> Float[Array, "B F P S K D"]:
    """The tokens of the key frames of every frame, one after the other (s = M * n).

    Slots that hold runs of consecutive frames (the previous frame, the first one) become slices, not gathers: their
    gradients are then pads instead of scatters. Where there are many runs, as of tiles in three dimensions, it is one
    gather.
    """
    runs = [_runs(column) for column in frames.index.T]
    if sum(map(len, runs)) > MOST_RUNS * len(runs):
        return rearrange(jnp.take(x, frames.index, axis=1), "b t m p n k d -> b t p (m n) k d")
    slots = [jnp.concatenate([_run(x, *run) for run in some], axis=1) for some in runs]
    return rearrange(jnp.stack(slots, axis=3), "b t p m n k d -> b t p (m n) k d")


def _runs(column: np.ndarray) -> list[tuple[int, int, int]]:
    """A column of frame numbers as runs (start, length, step), step 0 or 1."""
    runs: list[list[int]] = []
    for frame in column.tolist():
        if runs:
            start, length, step = runs[-1]
            if length == 1 and frame - start in (0, 1):
                runs[-1] = [start, 2, frame - start]
                continue
            if frame == start + length * step and length > 1:
                runs[-1][1] += 1
                continue
        runs.append([frame, 1, 1])
    return [tuple(run) for run in runs]


def _run(x: Array, start: int, length: int, step: int) -> Array:
    if step:
        return x[:, start : start + length]
    return jnp.broadcast_to(x[:, start : start + 1], (x.shape[0], length, *x.shape[2:]))


def _mask(layout: SequenceLayout, frames: VisibleFrames, frame_valid: Bool[Array, "B T"] | None) -> Bool[Array,
                                                                                                         " ..."] | None:
    """Mask that broadcasts against logits `[B, T, P, K, n, M * n]`."""
    positions, size = layout.pattern.layout == "positions", layout.shape[1:]
    tokens = 1 if positions else layout.tokens
    covered = positions or all(term.covers_frame(size) for term, _ in layout.terms)
    if covered and frame_valid is None and frames.valid.all():
        return None
    slots = frames.valid[None] if frame_valid is None else frame_valid[:, frames.index] & frames.valid
    if covered:
        mask = jnp.broadcast_to(jnp.asarray(slots)[..., None], (*slots.shape, tokens))  # [B or 1, T, M, n]
        return mask.reshape(*mask.shape[:2], 1, 1, 1, -1)
    shown = []
    for term, table in layout.terms:  # what each shows of the positions of the frames that see each other by it
        place = np.arange(tokens)
        within = np.asarray(term.position_visible(place[:, None], place[None, :], size))
        shown.append(slots_mask(slots & np.take_along_axis(table, frames.index, axis=1), within))
    return functools.reduce(jnp.logical_or, shown)


def slots_mask(slots: Bool[ArrayLike, "B T M"], within: Bool[np.ndarray, "N N"]) -> Bool[Array, "B T 1 1 N S"]:
    """Mask against logits `[B, T, P, K, n, M * n]`: which slots of each frame hold a frame, and which positions see
    each other."""
    valid = jnp.broadcast_to(jnp.asarray(slots)[..., None], (*slots.shape, len(within)))
    return valid.reshape(*valid.shape[:2], 1, 1, 1, -1) & jnp.tile(jnp.asarray(within), (1, slots.shape[2]))


def _gather_bias(
    bias: Float[Array, "*rest K Q S"] | None, layout: SequenceLayout, frames: VisibleFrames
) -> Float[Array, " ..."] | None:
    """Bias of every frame to its key frames, `[B or 1, T, P or 1, K, n, M * n]`."""
    if bias is None:
        return None
    count, places = layout.shape[0], layout.tokens if layout.pattern.layout == "positions" else 1
    bias = bias if bias.ndim == 4 else bias[None]
    split = "c k (t n) (s m) -> c k t n s m"
    bias = rearrange(bias, split, t=count, s=count)
    rows = [bias[:, :, i, :, index] for i, index in enumerate(frames.index)]  # each [M, c, k, n, m]
    out = rearrange(jnp.stack(rows, axis=0), "t s c k n m -> c t k n (s m)")
    places = places if out.shape[0] > 1 else 1
    return rearrange(out, "(b p) t k n s -> b t p k n s", p=places)
