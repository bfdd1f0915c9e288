"""Dense attention over the few frames that a frame sees: work and memory grow linearly with the clip."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.block_mask import ExtraKeys, SequenceLayout
from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.attention.patterns import VisibleFrames


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
    gradients are then pads instead of scatters.
    """
    slots = [jnp.concatenate([_run(x, *run) for run in _runs(column)], axis=1) for column in frames.index.T]
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
    positions = layout.pattern.layout == "positions"
    tokens = 1 if positions else layout.tokens
    within = None
    if not positions and not layout.pattern.covers_frame(layout.shape[1:]):
        ids = np.arange(tokens)
        within = layout.pattern.position_visible(ids[:, None], ids[None, :], layout.shape[1:])
    if within is None and frame_valid is None and frames.valid.all():
        return None
    valid = jnp.asarray(frames.valid)[None] if frame_valid is None else frame_valid[:, frames.index] & frames.valid
    valid = jnp.broadcast_to(valid[..., None], (*valid.shape, tokens))  # [B or 1, T, M, n]
    mask = valid.reshape(*valid.shape[:2], 1, 1, 1, -1)
    if within is not None:
        mask = mask & jnp.tile(jnp.asarray(within), (1, frames.index.shape[1]))
    return mask


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
