"""Positions inside attention: rotary embedding over (t, h, w) and learned relative bias.

Rotary changes q and k and therefore works with every kernel; a bias needs a kernel that takes one.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdm_jax.errors import UserError


def rotary_axis_dims(head_dim: int, axes: int) -> tuple[int, ...]:
    """Even share of `head_dim` given to each of `axes` axes; what is left over is not rotated.

    Raises `UserError` when not even one pair per axis fits.
    """
    share = head_dim // (2 * axes) * 2
    if share == 0:
        raise UserError(f"head_dim={head_dim} is too small for rotary positions over {axes} axes; "
                        f"permitted: >= {2 * axes}")
    return (share,) * axes


def rotary(x: Float[Array, "b t h w k d"], *, base: float = 100.0, axes: str = "thw") -> Float[Array, "b t h w k d"]:
    """Rotate pairs of features by an angle proportional to the frame, row and column (Su et al. 2021, 2104.09864).

    `base` is small because video grids are small: the slowest pair turns about once in `2 pi base` positions.
    """
    dims = rotary_axis_dims(x.shape[-1], len(axes))
    parts, start = [], 0
    for axis, dim in zip(axes, dims, strict=True):
        part = x[..., start : start + dim]
        place = 1 + "thw".index(axis)
        frequency = base ** (-np.arange(0, dim, 2) / dim)
        angle = np.arange(x.shape[place])[:, None] * frequency  # [length, dim/2]
        shape = [1] * (x.ndim - 1) + [dim // 2]
        shape[place] = x.shape[place]
        cos, sin = (jnp.asarray(f(angle), x.dtype).reshape(shape) for f in (np.cos, np.sin))
        first, second = jnp.split(part, 2, axis=-1)
        parts += [first * cos - second * sin, first * sin + second * cos]
        start += dim
    return jnp.concatenate([*parts, x[..., start:]], axis=-1)


def relative_index(length: int, max_distance: int) -> Int[np.ndarray, "q s"]:
    """Index into a table of `2 * max_distance + 1` clipped offsets (key minus query) for one axis."""
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    return np.clip(offset, -max_distance, max_distance) + max_distance
