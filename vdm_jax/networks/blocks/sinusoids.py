"""Sines and cosines of numbers: codes of noise levels, scalars, positions and frames (Vaswani et al. 2017, arXiv
1706.03762, section 3.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.attention.positions import rotary_axis_dims


def sinusoids(
    x: Array | np.ndarray, channels: int, max_period: float = 10_000.0, *,
    order: Literal["sin_cos", "cos_sin", "interleaved"] = "sin_cos", endpoint: bool = True,
) -> Float[Array, "... C"]:
    """Sines and cosines of `x` at `channels // 2` geometrically spaced periods from 2 pi on; float32.

    The longest period is 2 pi `max_period` with `endpoint` and one step short of that without, as in DDPM's code and
    the released networks. `interleaved` has sines in even channels and cosines in odd ones. numpy stays numpy.
    """
    numbers = jnp if isinstance(x, jax.Array) else np
    half = channels // 2
    steps = max(half - 1, 1) if endpoint else half
    frequency = numbers.exp(-math.log(max_period) * numbers.arange(half) / steps)
    angle = x[..., None].astype(numbers.float32 if numbers is jnp else float) * frequency
    parts = [numbers.sin(angle), numbers.cos(angle)]
    if order == "interleaved":
        return numbers.stack(parts, axis=-1).reshape(*x.shape, -1).astype(numbers.float32)
    return numbers.concatenate(parts if order == "sin_cos" else parts[::-1], axis=-1).astype(numbers.float32)


def grid_sinusoids(places: tuple[Sequence[int], ...], channels: int, base: float = 10_000.0) -> np.ndarray:
    """Sines and cosines of positions on a grid, float32 `[*lengths, channels]`.

    `places` holds the position numbers along each axis. Each axis has an even share of the channels; what is left
    over is zero. Raises `UserError` when an axis has less than one pair.
    """
    shares = rotary_axis_dims(channels, len(places))
    lengths = tuple(len(p) for p in places)
    code = np.zeros((*lengths, channels), np.float32)
    start = 0
    for axis, (numbers, share) in enumerate(zip(places, shares, strict=True)):
        shape = [1] * len(lengths) + [share]
        shape[axis] = lengths[axis]
        part = sinusoids(np.asarray(numbers), share, base, endpoint=False)
        code[..., start : start + share] = part.reshape(shape)
        start += share
    return code


def weighted_sinusoids(
    lengths: tuple[int, int, int], channels: int, shares: tuple[int, int, int], scales: tuple[float, float, float]
) -> Float[np.ndarray, "T H W C"]:
    """Sines and cosines of positions over `scales`, of frames, columns and rows in this order of the channels, in
    proportion to `shares` (of frames, rows, columns). What is left over is zero."""
    code, start = np.zeros((*lengths, channels), np.float32), 0
    for axis in (0, 2, 1):
        dim = channels * shares[axis] // sum(shares) // 2 * 2
        shape = [1, 1, 1, dim]
        shape[axis] = lengths[axis]
        part = sinusoids(np.arange(lengths[axis]) / scales[axis], dim, endpoint=False)
        code[..., start : start + dim] = part.reshape(shape)
        start += dim
    return code


def frame_code(frames: int, channels: int) -> Float[np.ndarray, "T C"]:
    """Sines (even channels) and cosines (odd ones) of the number of each frame: AnimateDiff's."""
    return sinusoids(np.arange(frames), channels, order="interleaved", endpoint=False)
