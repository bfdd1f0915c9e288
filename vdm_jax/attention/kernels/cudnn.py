"""Fused attention of cuDNN on NVIDIA GPUs, through `jax.nn.dot_product_attention`.

cuDNN masks by length and by causal windows over single rows only. So it computes full sequences (spatial, temporal,
full) and cross-attention, causal temporal attention, causal attention frame by frame, and patterns that see few
frames, gathered: the keys of a frame are packed to the front and cut off by their number. bfloat16 and float16 only.
Which of these a pattern is follows from what it shows, not from its name; one that is none of them is refused.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from vdm_jax.attention.block_mask import ExtraKeys, SequenceLayout
from vdm_jax.attention.kernels.gather import gather_frames
from vdm_jax.errors import UserError

IMPLEMENTATION = "cudnn"  # the tests of layouts and lengths put "xla" here


def attention(q, k, v, layout: SequenceLayout, *, bias=None, frame_valid=None, extra_keys: ExtraKeys | None = None,
              own: bool = True):
    """Attention within the limits of the table; see `vdm_jax.attention.kernels` for the arguments. Raises `UserError`
    for patterns that none of cuDNN's masks is."""
    del bias, frame_valid  # the table lets none through
    if extra_keys is not None:
        return _with_outside(q, k, v, layout, extra_keys, own)
    block_mask, table = layout.block_mask(), layout.frame_table
    if block_mask.everything:
        return layout.video(_fused(layout.rows(q), layout.rows(k), layout.rows(v)))
    if layout.pattern.layout == "positions" and (window := _causal_window(table)):
        last = None if window == len(table) else (window - 1, 0)
        return layout.video(_fused(layout.rows(q), layout.rows(k), layout.rows(v), is_causal=True,
                                   local_window_size=last))
    if layout.pattern.layout == "all" and block_mask.within is None:
        if _causal_window(table) == len(table):
            return _causal(q, k, v, layout)
        if layout.pattern.bounded_frames() and table.any(axis=1).all():
            return _gathered(q, k, v, layout)
    raise UserError(f"attention kernel='cudnn' has no mask for pattern {layout.pattern} on "
                    f"{'x'.join(map(str, layout.shape))} tokens; permitted: sequences without a mask, causal ones, "
                    "whole frames of which each sees few")


def _with_outside(q, k, v, layout: SequenceLayout, extra_keys: ExtraKeys, own: bool):
    """Sequences without a mask that see outside tokens, all of a group, in addition to their own or alone."""
    keys, values, _, _ = layout.extra_rows(extra_keys)
    if own:
        keys = jnp.concatenate([layout.rows(k), keys], axis=1)
        values = jnp.concatenate([layout.rows(v), values], axis=1)
    return layout.video(_fused(layout.rows(q), keys, values))


def _causal_window(table: np.ndarray) -> int:
    """Of a causal relation between frames: how many each sees, itself included; 0 where it is no such relation."""
    frames = np.arange(len(table))
    window = int(table[-1].sum())
    back = frames[:, None] - frames[None, :]
    return window if np.array_equal(table, (back >= 0) & (back < window)) else 0


def _gathered(q, k, v, layout: SequenceLayout):
    """The few frames that each sees, packed to the front."""
    frames = layout.key_frames()
    merge = "b t p s k d -> (b t p) s k d"
    q, k, v = (rearrange(a, "b t h w k d -> b t 1 (h w) k d") for a in (q, k, v))
    k, v = gather_frames(k, frames), gather_frames(v, frames)
    counts = jnp.asarray(frames.valid.sum(axis=1) * layout.tokens, jnp.int32)
    lengths = None if frames.valid.all() else jnp.tile(counts, q.shape[0])
    out = _fused(*(rearrange(a, merge) for a in (q, k, v)), key_value_seq_lengths=lengths)
    batch, (frames, height, width) = q.shape[0], layout.shape
    return rearrange(out, "(b t) (h w) k d -> b t h w k d", b=batch, t=frames, h=height, w=width)


def _causal(q, k, v, layout: SequenceLayout):
    """All earlier frames: one call per frame with as many keys as it sees, so that nothing is computed and masked."""
    q, k, v = (rearrange(a, "b t h w k d -> b t (h w) k d") for a in (q, k, v))
    prefix = [(t + 1) * layout.tokens for t in range(layout.shape[0])]
    k, v = (rearrange(a, "b t n k d -> b (t n) k d") for a in (k, v))
    outs = [_fused(q[:, t], k[:, :end], v[:, :end]) for t, end in enumerate(prefix)]
    return jnp.stack(outs, axis=1).reshape(q.shape[0], *layout.shape, *q.shape[3:])


def _fused(q, k, v, **options):
    return jax.nn.dot_product_attention(q, k, v, implementation=IMPLEMENTATION, **options)
