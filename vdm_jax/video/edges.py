"""Edges of a video, frame by frame."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def edges(video: Float[Array, "*rest H W 3"]) -> Float[Array, "*rest H W 1"]:
    """The size of the gradient of a video in [-1, 1], by Sobel's kernels on the mean of the channels: a step from black
    to white is 1, and steeper diagonals are cut there. At the border the outermost pixels are repeated."""
    grey = (video.mean(-1) + 1) / 2
    sides = ((0, 0),) * (grey.ndim - 2)

    def derivative(x: Array, axis: int) -> Array:
        """The difference of the neighbours on both sides along one axis, smoothed along the other by 1, 2, 1."""
        x = jnp.pad(x, (*sides, (1, 1), (1, 1)), mode="edge")
        across, along = -1 - (axis == -1), axis
        height = x.shape[across] - 2
        smooth = sum(weight * _from(x, across, i, height) for i, weight in enumerate((0.25, 0.5, 0.25)))
        return _from(smooth, along, 2, x.shape[along] - 2) - _from(smooth, along, 0, x.shape[along] - 2)

    return jnp.minimum(jnp.hypot(derivative(grey, -1), derivative(grey, -2)), 1)[..., None]


def _from(x: Array, axis: int, start: int, size: int) -> Array:
    return x[..., start : start + size] if axis == -1 else x[..., start : start + size, :]
