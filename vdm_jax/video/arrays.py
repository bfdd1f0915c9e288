"""Pure functions of video arrays `[..., T, H, W, C]`: value range, resizing, frame rate, crops.

Inside the model a video is float32 in [-1, 1]; on disk and on the way to the device it is uint8. Everything here
accepts any number of leading batch dimensions, and, but for the two conversions, works on JAX arrays and under `jit`.

Cascades degrade a training clip with `subsample_frames` and `resize(..., 'area')` and enlarge a low-resolution
condition with `upsample_frames` and `resize(..., 'bilinear')`: Ho et al. 2022, "Imagen Video", arXiv 2210.02303,
section 2.2 (repeated or blank frames for temporal, bilinear for spatial super-resolution).
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

from vdm_jax.configuration import Size, check_value
from vdm_jax.errors import NotFinite, UserError

ResizeMethod = Literal["area", "bilinear", "nearest"]
UpsampleMode = Literal["repeat", "blank", "linear"]


# --- value range ----------------------------------------------------------------------------------------------------


def to_float(video: UInt8[Array | np.ndarray, " ..."]) -> Float[Array | np.ndarray, " ..."]:
    """uint8 in [0, 255] to float32 in [-1, 1]; numpy in, numpy out, JAX in, JAX out.

    Raises:
      UserError: the array is not uint8.
    """
    if video.dtype != np.uint8:
        raise UserError(f"to_float: dtype={video.dtype}; permitted: uint8")
    xp = np if isinstance(video, np.ndarray) else jnp
    return video.astype(xp.float32) / xp.float32(127.5) - xp.float32(1)


def to_uint8(video: Float[Array | np.ndarray, " ..."]) -> UInt8[Array | np.ndarray, " ..."]:
    """Float in [-1, 1] to uint8, clipped and rounded to nearest: the exact inverse of `to_float`.

    Raises:
      UserError: the array is not floating point.
      NotFinite: it holds NaN or infinity, which would become black or white (not checked while tracing).
    """
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise UserError(f"to_uint8: dtype={video.dtype}; permitted: a floating-point type in [-1, 1]")
    check_finite(video, "the video")
    xp = np if isinstance(video, np.ndarray) else jnp
    levels = (xp.clip(video.astype(xp.float32), -1, 1) + 1) * xp.float32(127.5)
    return xp.round(levels).astype(xp.uint8)


def grey(video: Float[Array, "*batch H W 3"]) -> Float[Array, "*batch H W 1"]:
    """The luma of RGB values, in the same range (ITU-R BT.601); of equal values that value."""
    red, green, blue = jnp.split(video, 3, axis=-1)
    return green + 0.299 * (red - green) + 0.114 * (blue - green)


def check_finite(video: Float[Array | np.ndarray, " ..."], what: str) -> None:
    """Raises `NotFinite` where a video holds NaN or infinity; nothing is checked while tracing."""
    if isinstance(video, jax.core.Tracer):
        return
    xp = np if isinstance(video, np.ndarray) else jnp
    if not bool(xp.isfinite(video).all()):
        wrong = int((~xp.isfinite(video)).sum())
        raise NotFinite(f"{what}: {wrong} of {video.size} values are NaN or infinite")


# --- height and width -----------------------------------------------------------------------------------------------


def resize(
    video: Float[Array, "*rest H W C"], height: int, width: int, method: ResizeMethod = "area"
) -> Float[Array, "*rest height width C"]:
    """Resizes every frame to `height` x `width` pixels.

    'area' shrinks by an exact block mean along each axis whose factor is a whole number and by an anti-aliased linear
    filter along the others (which is plain linear interpolation when enlarging). 'bilinear' interpolates without an
    anti-aliasing filter. 'nearest' repeats or drops pixels. Pixel centres are at half-integers in all three.

    Raises:
      UserError: fewer than 3 dimensions, a size below 1, a dtype that is not floating point, an unknown method.
    """
    _require_float("resize", video)
    if video.ndim < 3:
        raise UserError(f"resize: shape={video.shape}; permitted: [..., H, W, C]")
    check_value((height, width), tuple[Size, Size], "size")
    if method == "area":
        return _area(_area(video, -3, height), -2, width)
    check_value(method, ResizeMethod, "method")
    shape = (*video.shape[:-3], height, width, video.shape[-1])
    name = "linear" if method == "bilinear" else "nearest"
    return jax.image.resize(video, shape, name, antialias=False)


def _area(video: Array, axis: int, size: int) -> Array:
    axis += video.ndim
    before = video.shape[axis]
    if before % size == 0:
        blocks = (*video.shape[:axis], size, before // size, *video.shape[axis + 1 :])
        return video.reshape(blocks).mean(axis + 1)
    shape = (*video.shape[:axis], size, *video.shape[axis + 1 :])
    return jax.image.resize(video, shape, "linear", antialias=True)


# --- frames ---------------------------------------------------------------------------------------------------------


def subsample_frames(video: Num[Array, "*batch T H W C"], frames: int) -> Num[Array, "*batch frames H W C"]:
    """Keeps every `T / frames`-th frame, beginning with the first.

    Raises:
      UserError: fewer than 4 dimensions, or `frames` does not divide T.
    """
    _require_frames("subsample_frames", video)
    total = video.shape[-4]
    if frames < 1 or total % frames:
        divisors = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise UserError(f"subsample_frames: frames={frames} does not divide {total} frames; permitted: {divisors}")
    return video[..., :: total // frames, :, :, :]


def upsample_frames(
    video: Num[Array, "*batch T H W C"], frames: int, mode: UpsampleMode = "repeat"
) -> Num[Array, "*batch frames H W C"]:
    """Raises the frame count to `frames`, a multiple of T; the given frames stand where `subsample_frames` took them.

    'repeat' holds each frame, 'blank' fills the frames between with zeros (mid-grey in [-1, 1]), 'linear' blends
    neighbours (floating point only; the last given frame is held to the end). In every mode
    `subsample_frames(upsample_frames(x, frames), T) == x`.

    Raises:
      UserError: fewer than 4 dimensions, `frames` is not a multiple of T, an unknown mode.
    """
    _require_frames("upsample_frames", video)
    given = video.shape[-4]
    if frames < given or frames % given:
        permitted = f"{given}, {2 * given}, {3 * given}, ..."
        raise UserError(
            f"upsample_frames: frames={frames} is not a multiple of {given} frames; permitted: {permitted}"
        )
    factor = frames // given
    if mode == "repeat":
        return jnp.repeat(video, factor, axis=-4)
    if mode == "blank":
        wide = jnp.zeros((*video.shape[:-4], frames, *video.shape[-3:]), video.dtype)
        return wide.at[..., ::factor, :, :, :].set(video)
    if mode == "linear":
        _require_float("upsample_frames mode='linear'", video)
        left = np.arange(frames) // factor
        right = np.minimum(left + 1, given - 1)
        blend = ((np.arange(frames) % factor) / factor).astype(video.dtype)[:, None, None, None]
        before, after = (jnp.take(video, index, axis=-4) for index in (left, right))
        return before * (1 - blend) + after * blend
    raise UserError(f"upsample_frames: mode={mode!r}; permitted: {', '.join(map(repr, get_args(UpsampleMode)))}")


# --- crops ----------------------------------------------------------------------------------------------------------


def crop(
    video: Num[Array, "*rest H W C"], top: int | Array, left: int | Array, height: int, width: int
) -> Num[Array, "*rest height width C"]:
    """The `height` x `width` window whose first pixel is (`top`, `left`); the corner may be traced.

    Raises:
      UserError: the window is larger than the frame, or a corner given as int leaves it.
    """
    full_height, full_width = video.shape[-3:-1]
    if not (0 < height <= full_height and 0 < width <= full_width):
        raise UserError(f"crop: {height}x{width} of {full_height}x{full_width} pixels; permitted: a window that fits")
    for name, corner, last in (("top", top, full_height - height), ("left", left, full_width - width)):
        if isinstance(corner, int) and not 0 <= corner <= last:
            raise UserError(f"crop: {name}={corner}; permitted: 0 to {last}")
    video = jax.lax.dynamic_slice_in_dim(video, top, height, axis=video.ndim - 3)
    return jax.lax.dynamic_slice_in_dim(video, left, width, axis=video.ndim - 2)


# --- checks ---------------------------------------------------------------------------------------------------------


def _require_float(name: str, video: Array) -> None:
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise UserError(f"{name}: dtype={video.dtype}; permitted: a floating-point type (see to_float)")


def _require_frames(name: str, video: Array) -> None:
    if video.ndim < 4:
        raise UserError(f"{name}: shape={video.shape}; permitted: [..., T, H, W, C]")
