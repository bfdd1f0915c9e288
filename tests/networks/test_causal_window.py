"""Temporal layers of Make-Your-Video by hand: convolutions with one over pixels, and attention in a causal window."""

from __future__ import annotations

import jax
import numpy as np

from vdm_jax.attention import TemporalCausal
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.temporal import TemporalConvolutions, relative_positions
from vdm_jax.parallel.mesh import MeshSpec, make_mesh


def test_five_convolutions_by_hand(filled, normal):
    """Norms over the clip; the second convolution is over pixels, and the clip's ends are repeated, on frames split
    over devices too."""
    layer, x = TemporalConvolutions(5, spatial=True, replicate=True, groups=2), normal(0, 1, 4, 3, 2, 4)
    params = filled(layer, x)
    wanted = np.array(x[0], np.float64)
    for i in range(5):
        norm, conv = (jax.tree.map(np.asarray, params[f"{kind}_{i}"]) for kind in ("norm", "conv"))
        groups = wanted.reshape(4, 3, 2, 2, 2)
        groups = groups - groups.mean((0, 1, 2, 4), keepdims=True)
        groups = groups / np.sqrt((groups**2).mean((0, 1, 2, 4), keepdims=True) + 1e-5)
        h = groups.reshape(4, 3, 2, 4) * norm["scale"] + norm["bias"]
        h = h / (1 + np.exp(-h))
        across = i == 1
        h = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0))) if across else np.pad(h, ((1, 1), *[(0, 0)] * 3), mode="edge")
        wanted = np.zeros((4, 3, 2, 4)) + conv["bias"]
        for t, row, column in np.ndindex(*conv["kernel"].shape[:3]):
            wanted += h[t : t + 4, row : row + 3, column : column + 2] @ conv["kernel"][t, row, column]
        assert conv["kernel"].shape == ((1, 3, 3, 4, 4) if across else (3, 1, 1, 4, 4))
    found = jax.jit(layer.apply)({"params": params}, x)
    np.testing.assert_allclose(found, wanted[None] + np.asarray(x), atol=1e-4)
    with jax.set_mesh(make_mesh(MeshSpec(data=1, context=2), jax.devices()[:2])):
        np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x), found, atol=1e-5)


def attention(window, furthest):
    return Attention(heads=2, pattern=TemporalCausal(window=window), joint=False, **relative_positions(furthest))


def test_attention_in_a_causal_window_with_relative_positions_by_hand(filled, normal):
    """A frame sees itself and two before it; vectors of the offset, which are alike from offset 1 on, are added to keys
    and values."""
    layer, x = attention(3, 1), normal(0, 1, 6, 1, 2, 4)
    params = filled(layer, x)
    found = layer.apply({"params": params}, x)
    q, k, v = (np.asarray(x[0] @ params[name]["kernel"]).reshape(6, 2, 2, 2) for name in ("query", "key", "value"))
    keys, values = (np.asarray(params[f"offset_{name}"]["vectors_t"]) for name in ("keys", "values"))
    out = np.zeros((6, 2, 2, 2))  # frames, positions, heads, channels of a head
    for frame, place, head in np.ndindex(6, 2, 2):
        seen = range(max(0, frame - 2), frame + 1)
        offsets = [max(other - frame, -1) + 1 for other in seen]
        logits = np.array([q[frame, place, head] @ (k[other, place, head] + keys[offset])
                           for other, offset in zip(seen, offsets, strict=True)]) / np.sqrt(2)
        weights = np.exp(logits) / np.exp(logits).sum()
        for weight, other, offset in zip(weights, seen, offsets, strict=True):
            out[frame, place, head] += weight * (v[other, place, head] + values[offset])
    wanted = out.reshape(1, 6, 1, 2, 4) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_frame_of_a_longer_video_sees_what_it_sees_in_a_clip_of_sixteen(filled, normal):
    """None after it and none more than 15 before it; and beyond the length of training it is as in a clip alone."""
    layer, x = attention(16, 16), normal(0, 1, 40, 1, 1, 4)
    params = filled(layer, x)
    apply = jax.jit(lambda x: layer.apply({"params": params}, x))
    whole = apply(x)
    for frame in (0, 7, 20, 39):
        first = max(0, frame - 15)
        others = np.delete(np.arange(40), np.arange(first, frame + 1))
        np.testing.assert_array_equal(apply(x.at[:, others].add(3.0))[:, frame], whole[:, frame])
        assert np.abs(apply(x.at[:, first].add(3.0)) - whole)[:, frame].max() > 1e-4
        np.testing.assert_allclose(layer.apply({"params": params}, x[:, first : frame + 1])[:, -1], whole[:, frame],
                                   atol=1e-5)
