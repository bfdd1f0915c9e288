"""Learned parts of positions in self-attention, and the norm of queries and keys."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.positions import (
    LAYOUT_AXES,
    bucket_index,
    relative_index,
    relative_key_bias,
    sum_of_axes,
)
from vdm_jax.networks.blocks.sinusoids import grid_sinusoids
from vdm_jax.networks.layers import zeros


class RelativeBias(nn.Module):
    """Learned bias per head and offset, summed over the axes a layout spans: a scalar per clipped offset
    (`relative`) or per bucket of offsets (`t5`, Raffel et al. 2020, 1910.10683)."""

    heads: int
    kind: str = "relative"
    max_distance: int = 16  # positions; further offsets share one entry
    buckets: int = 32  # of `t5`
    bucket_distance: int = 32  # positions; further offsets share the last bucket of their side

    @nn.compact
    def __call__(self, layout: str, lengths: tuple[int, int, int]) -> Float[Array, "K Q S"]:
        axes, biases = LAYOUT_AXES[layout], {}
        sizes = tuple(lengths["thw".index(a)] for a in axes)
        for axis, size in zip(axes, sizes, strict=True):
            entries = self.buckets if self.kind == "t5" else 2 * self.max_distance + 1
            table = self.param(f"table_{axis}", zeros, (entries, self.heads))
            index = (bucket_index(size, self.buckets, self.bucket_distance) if self.kind == "t5"
                     else relative_index(size, self.max_distance))
            biases[axis] = jnp.moveaxis(table[index], -1, 0)
        return sum_of_axes(biases, sizes)


class RelativeKeys(nn.Module):
    """Learned key vectors of clipped offsets, shared by the heads (Shaw et al. 2018, 1803.02155), as a bias."""

    max_distance: int = 16  # positions; further offsets share one vector

    @nn.compact
    def __call__(self, q: Float[Array, "B T H W K D"], layout: str) -> Float[Array, "C K Q S"]:
        shape = (2 * self.max_distance + 1, q.shape[-1])
        vectors = {a: self.param(f"vectors_{a}", nn.initializers.normal(0.02), shape) for a in LAYOUT_AXES[layout]}
        return relative_key_bias(q, vectors, layout)


class RelativeValues(nn.Module):
    """Learned value vectors of clipped offsets, shared by the heads (Shaw et al. 2018, 1803.02155), one table per axis
    of the layout."""

    head_dim: int
    max_distance: int = 16  # positions; further offsets share one vector

    @nn.compact
    def __call__(self, layout: str) -> dict[str, Float[Array, "S D"]]:
        shape = (2 * self.max_distance + 1, self.head_dim)
        return {a: self.param(f"vectors_{a}", nn.initializers.normal(0.02), shape) for a in LAYOUT_AXES[layout]}


class AddedPositions(nn.Module):
    """A code of the place in the layout's sequences to add to its tokens: `sinusoidal`, or `learned` with one vector
    per place along each axis. An appended independent image counts as frame 0."""

    kind: str
    layout: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], frame_mask: Bool[np.ndarray, "T T"] | None
    ) -> Float[Array, "1 T1 H1 W1 C"]:
        axes = LAYOUT_AXES[self.layout]
        places = {"t": frame_numbers(x.shape[1], frame_mask), "h": np.arange(x.shape[2]), "w": np.arange(x.shape[3])}
        shape = [1, *(x.shape[1 + i] if a in axes else 1 for i, a in enumerate("thw")), x.shape[-1]]
        if self.kind == "sinusoidal":
            return jnp.asarray(grid_sinusoids(tuple(places[a] for a in axes), x.shape[-1]), x.dtype).reshape(shape)
        total = 0
        for axis in axes:
            numbers = places[axis]
            table = self.param(f"table_{axis}", nn.initializers.normal(0.02), (int(numbers.max()) + 1, x.shape[-1]))
            one = [1] * 5
            one[1 + "thw".index(axis)], one[-1] = len(numbers), x.shape[-1]
            total = total + table[numbers].reshape(one)
        return total.astype(x.dtype)


class HeadNorm(nn.Module):
    """RMS norm over the features of a head, or of all, with a learned scale, in float32 (of queries and keys: Esser et
    al. 2024, 2403.03206; keeps logits bounded in low precision)."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        y = x.astype(jnp.float32)
        return (y * jax.lax.rsqrt((y**2).mean(-1, keepdims=True) + self.epsilon) * scale).astype(x.dtype)


class HeadLayerNorm(nn.Module):
    """Layer norm over the features of a head, with learned scale and bias, in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale, bias = (self.param(name, init, x.shape[-1:]) for name, init in (
            ("scale", nn.initializers.ones), ("bias", nn.initializers.zeros)))
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        return (y * jax.lax.rsqrt((y**2).mean(-1, keepdims=True) + self.epsilon) * scale + bias).astype(x.dtype)


def frame_numbers(frames: int, frame_mask: Bool[np.ndarray, "T T"] | None) -> np.ndarray:
    """Position of every frame: counted on, except that a frame that sees only itself is number 0."""
    numbers = np.arange(frames)
    return numbers if frame_mask is None else np.where(np.asarray(frame_mask).sum(axis=1) == 1, 0, numbers)
