"""Dense softmax attention over all tokens, written out: the definition every kernel is compared with."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.attention import (
    BlockCausal,
    Causal,
    ExtraKeys,
    FirstFrames,
    Full,
    LocalWindow,
    SparseCausal,
    Spatial,
    TeacherForcing,
    Temporal,
    TemporalCausal,
)

PATTERNS = (
    Spatial(), Temporal(), Full(), Causal(), Causal(window=2), TemporalCausal(), TemporalCausal(window=3),
    SparseCausal(), SparseCausal(own=True), SparseCausal(previous=False), SparseCausal(first=False), FirstFrames(),
    LocalWindow(frames=3, height=3, width=3), LocalWindow(frames=1, height=1, width=5),
    BlockCausal(block=2, window=4, sink=2), TeacherForcing(frames=4, block=2),
)


def name(pattern) -> str:
    """Short text of a pattern for test ids."""
    return str(pattern).replace("True", "1").replace("False", "0")


def visible(pattern, shape, frame_mask=None) -> np.ndarray:
    """Dense mask [S, S] of pattern and frame mask, with the rule for frames left alone, from the pattern's oracle."""
    mask = pattern.visible(shape)
    if frame_mask is None:
        return mask
    tokens = shape[1] * shape[2]
    frame = np.arange(len(mask)) // tokens
    allowed = frame_mask[frame[:, None], frame[None, :]]
    out = mask & allowed
    for f in range(shape[0]):
        rows = frame == f
        if not out[rows].any() and frame_mask[f, f]:
            out[rows] = inside(pattern, shape)[rows]
    return out


def inside(pattern, shape) -> np.ndarray:
    """What each token would see of its own frame, [S, S]."""
    tokens = np.arange(int(np.prod(shape)))
    n = shape[1] * shape[2]
    same = tokens[:, None] // n == tokens[None, :] // n
    return same & pattern.position_visible(tokens[:, None] % n, tokens[None, :] % n, shape[1:])


def reference(q, k, v, mask, bias=None, extra_keys: ExtraKeys | None = None):
    """Attention of tokens [B, T, H, W, K, D] with a mask that broadcasts to [B, K, S, S] and a bias likewise.

    Outside tokens of group t are seen by the queries of frame t (by all queries if there is one group).
    """
    batch, frames, _, _, heads, dim = q.shape
    rows = (a.reshape(batch, -1, heads, dim) for a in (q, k, v))
    q_, k_, v_ = rows
    scores = jnp.einsum("bqkd,bskd->bkqs", q_, k_) / jnp.sqrt(dim)
    scores = scores if bias is None else scores + bias
    seen = jnp.broadcast_to(mask, scores.shape)
    if extra_keys is not None:
        groups, count = extra_keys.k.shape[1:3]
        more_k, more_v = (a.reshape(batch, groups * count, heads, dim) for a in (extra_keys.k, extra_keys.v))
        scores = jnp.concatenate([scores, jnp.einsum("bqkd,bskd->bkqs", q_, more_k) / jnp.sqrt(dim)], axis=-1)
        frame = np.arange(q_.shape[1]) // (q_.shape[1] // frames)
        group = np.arange(groups * count) // count
        more = jnp.asarray((frame[:, None] == group[None, :]) | (groups == 1))[None, None]
        if extra_keys.mask is not None:
            more = more & extra_keys.mask.reshape(batch, 1, 1, -1)
        seen = jnp.concatenate([seen, jnp.broadcast_to(more, (*seen.shape[:3], groups * count))], axis=-1)
        v_ = jnp.concatenate([v_, more_v], axis=1)
    top = jnp.where(seen, scores, -jnp.inf).max(-1, keepdims=True)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores - jnp.where(jnp.isfinite(top), top, 0), 0)), 0)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return jnp.einsum("bkqs,bskd->bqkd", weights, v_).reshape(q.shape)


def spread_bias(bias, layout: str, shape):
    """A bias [K, Q, S] of a layout's sequences, written out over all pairs of tokens [K, S, S]."""
    tokens = np.arange(int(np.prod(shape)))
    n = shape[1] * shape[2]
    place = {"frames": tokens % n, "positions": tokens // n, "all": tokens}[layout]
    return bias[:, place[:, None], place[None, :]]


def extra(rng, batch, groups, count, heads, dim, masked=True) -> ExtraKeys:
    """Random outside tokens; with a mask, some are hidden, and all of the last group of the last sample."""
    k, v = rng.normal(size=(2, batch, groups, count, heads, dim)).astype(np.float32)
    mask = rng.random((batch, groups, count)) < 0.6
    mask[-1, -1] = False
    return ExtraKeys(jnp.asarray(k), jnp.asarray(v), jnp.asarray(mask) if masked else None)


@functools.partial(jax.jit, static_argnames=("layout", "shape"))
def _expected(inputs, mask, extra_mask, cotangent, layout, shape):
    def run(inputs):
        bias, outside = inputs.get("bias"), None
        if bias is not None and layout is not None:
            bias = spread_bias(bias, layout, shape)
        if "extra_k" in inputs:
            outside = ExtraKeys(inputs["extra_k"], inputs["extra_v"], extra_mask)
        return reference(inputs["q"], inputs["k"], inputs["v"], mask, bias, outside)

    out, pull = jax.vjp(run, inputs)
    return out, pull(cotangent)[0]


def assert_same(function, inputs, mask, *, layout=None, extra_mask=None, atol=3e-6, grad_atol=3e-5):
    """`function(**inputs)` equals the reference with the dense mask [S, S] or [B, 1, S, S], and so do all gradients.

    `inputs` are q, k, v and perhaps bias (of `layout`; None: over all tokens), extra_k and extra_v. The reference is
    compiled once per set of shapes.
    """
    shape = inputs["q"].shape[1:4]
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=inputs["q"].shape), jnp.float32)

    @jax.jit
    def ours(inputs):
        out, pull = jax.vjp(lambda inputs: function(**inputs), inputs)
        return out, pull(cotangent)[0]

    with jax.default_matmul_precision("highest"):
        out, gradients = ours(inputs)
        mask = jnp.broadcast_to(jnp.asarray(mask), (inputs["q"].shape[0], 1, *mask.shape[-2:]))
        wanted, wanted_gradients = _expected(inputs, mask, extra_mask, cotangent, layout, shape)
    np.testing.assert_allclose(out, wanted, atol=atol)
    for key in inputs:
        assert np.isfinite(gradients[key]).all()
        np.testing.assert_allclose(gradients[key], wanted_gradients[key], atol=grad_atol, err_msg=f"gradient of {key}")
