"""Fused attention of cuDNN on NVIDIA GPUs, through `jax.nn.dot_product_attention`.

cuDNN masks by length and by causal windows over single rows only. So it computes full sequences (spatial, temporal,
full), causal temporal attention, causal attention frame by frame, and patterns that see few frames, gathered: the keys
of a frame are packed to the front and cut off by their number. bfloat16 and float16 only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from vdm_jax.attention.kernels.gather import gather_frames
from vdm_jax.attention.patterns import Full, Spatial, TemporalCausal
from vdm_jax.attention.relation import Bank, View

IMPLEMENTATION = "cudnn"  # the tests of layouts and lengths put "xla" here


def attention(q, k, v, view: View, *, bias=None, frame_valid=None, external: Bank | None = None, own: bool = True):
    """Attention within the limits of the table; see `vdm_jax.attention.kernels` for the arguments."""
    del bias, frame_valid, external, own  # the table lets none through
    if view.pattern.layout == "positions":
        causal = isinstance(view.pattern, TemporalCausal)
        window = (view.pattern.window - 1, 0) if causal and view.pattern.window else None
        return view.video(_fused(view.rows(q), view.rows(k), view.rows(v), is_causal=causal, local_window_size=window))
    if isinstance(view.pattern, Spatial | Full):
        return view.video(_fused(view.rows(q), view.rows(k), view.rows(v)))
    if not view.pattern.bounded_frames():
        return _causal(q, k, v, view)
    frames = view.key_frames()
    merge = "b t p s k d -> (b t p) s k d"
    q, k, v = (rearrange(a, "b t h w k d -> b t 1 (h w) k d") for a in (q, k, v))
    k, v = gather_frames(k, frames), gather_frames(v, frames)
    counts = jnp.asarray(frames.valid.sum(axis=1) * view.tokens, jnp.int32)
    lengths = None if frames.valid.all() else jnp.tile(counts, q.shape[0])
    out = _fused(*(rearrange(a, merge) for a in (q, k, v)), key_value_seq_lengths=lengths)
    batch, (frames, height, width) = q.shape[0], view.shape
    return rearrange(out, "(b t) (h w) k d -> b t h w k d", b=batch, t=frames, h=height, w=width)


def _causal(q, k, v, view: View):
    """All earlier frames: one call per frame with as many keys as it sees, so that nothing is computed and masked."""
    q, k, v = (rearrange(a, "b t h w k d -> b t (h w) k d") for a in (q, k, v))
    prefix = [(t + 1) * view.tokens for t in range(view.shape[0])]
    k, v = (rearrange(a, "b t n k d -> b (t n) k d") for a in (k, v))
    outs = [_fused(q[:, t], k[:, :end], v[:, :end]) for t, end in enumerate(prefix)]
    return jnp.stack(outs, axis=1).reshape(q.shape[0], *view.shape, *q.shape[3:])


def _fused(q, k, v, **options):
    return jax.nn.dot_product_attention(q, k, v, implementation=IMPLEMENTATION, **options)
