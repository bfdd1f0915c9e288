"""How pictures are made as large as a detector wants them. Published scores differ in this alone."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vdm_jax.configuration import check_value

# Both interpolate linearly between the two nearest pixels and none averages when it shrinks. `tf1` takes pixel i of n
# from i * N / n (`tf.image.resize_bilinear` of TensorFlow 1), `half_pixel` from (i + 1/2) * N / n - 1/2 (PyTorch).
Resize = Literal["bilinear_tf1", "bilinear_half_pixel"]


def resized(frames: UInt8[Array, "*batch H W C"], side: int, resize: Resize) -> Float[Array, "*batch side side C"]:
    """Frames of `side` x `side` pixels, still in [0, 255]. Raises `UserError` for another filter."""
    rows, columns = (interpolation(size, side, resize) for size in frames.shape[-3:-1])
    return jnp.einsum("yh,...hwc,xw->...yxc", rows, jnp.asarray(frames, jnp.float32), columns,
                      precision=jax.lax.Precision.HIGHEST)


def interpolation(before: int, after: int, resize: Resize) -> Float[np.ndarray, "after before"]:
    """The matrix of linear interpolation between the two nearest pixels along one axis."""
    check_value(resize, Resize, "resize")
    half = 0.5 if resize == "bilinear_half_pixel" else 0.0
    place = np.maximum((np.arange(after) + half) * before / after - half, 0)
    left = np.minimum(place.astype(int), before - 1)
    right, share = np.minimum(left + 1, before - 1), place - left
    matrix = np.zeros((after, before), np.float32)
    np.add.at(matrix, (np.arange(after), left), 1 - share)
    np.add.at(matrix, (np.arange(after), right), share)
    return matrix
