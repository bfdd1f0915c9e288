"""Encoding and decoding of clips too large for memory: some frames at a time, and each frame in tiles.

`in_chunks` and `in_tiles` take any function from video to video that changes sizes by constant factors, and go inside
each other. `in_stream` is for functions that keep what later pieces need of earlier ones, and is exact.
`in_blended_clips` is for functions of clips whose first frame is apart, and blends pieces that overlap. Pieces are
computed one after the other (under `jit` too), so that activations are those of one piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from vdm_jax.configuration import Size, SizeOrZero, check_value
from vdm_jax.errors import UserError

Function = Callable[[Float[Array, "B T H W C"]], Float[Array, "B T2 H2 W2 O"]]
# A piece of a clip and what the pieces before it left, None at the beginning: its output, and what the next one needs
Step = Callable[[Float[Array, "B T H W C"], Any], tuple[Float[Array, "B T2 H2 W2 O"], Any]]


def in_chunks(
    function: Function, video: Float[Array, "B T H W C"], frames: int, overlap: int = 0
) -> Float[Array, "B T2 H2 W2 O"]:
    """`function` of `frames` frames at a time; the last piece may be shorter.

    Args:
      function: which may change the number of frames, by a whole number or one over one.
      frames: of a piece, as of `video`.
      overlap: frames on either side that a piece also sees, where the clip has them. What becomes of them is thrown
        away, so that the result is that of the whole where no output depends on frames farther off.

    The same as the function of the whole also for one that works frame by frame. Otherwise what reaches farther
    (temporal attention, norms over the clip) sees the ends of what a piece sees as the ends of a clip, as the
    released decoders do when they decode in pieces. Raises `UserError` for sizes that do not fit.
    """
    length = video.shape[1]
    check_value(frames, Size, "frames")
    check_value(overlap, SizeOrZero, "overlap")
    window = min(frames + 2 * overlap, length)
    piece = jax.eval_shape(function, jax.ShapeDtypeStruct((len(video), window, *video.shape[2:]), video.dtype))
    factor = Fraction(piece.shape[1], window)
    if 1 not in (factor.numerator, factor.denominator) or any(
            (size * factor).denominator > 1 for size in (length, frames, overlap)):
        raise UserError(f"frames={frames} at a time with overlap={overlap} of clips of {length}, whose number changes "
                        f"by {factor}; permitted: multiples of {factor.denominator}")

    def changed(count: Any) -> Any:
        return count * factor.numerator // factor.denominator

    def add(out: Array, number: Array) -> tuple[Array, None]:
        start = jnp.clip(number * frames - overlap, 0, length - window)
        part = function(lax.dynamic_slice_in_dim(video, start, window, axis=1))
        part = lax.dynamic_slice_in_dim(part, changed(number * frames - start), changed(frames), axis=1)
        return lax.dynamic_update_slice_in_dim(out, part, changed(number * frames), axis=1), None

    whole, rest = divmod(length, frames)
    out = jnp.zeros((len(video), changed(length), *piece.shape[2:]), piece.dtype)
    if whole:
        out, _ = lax.scan(add, out, jnp.arange(whole))
    if rest:
        start = max(length - rest - overlap, 0)
        part = function(video[:, start:])[:, changed(length - rest - start) :]
        out = lax.dynamic_update_slice_in_dim(out, part, changed(length - rest), axis=1)
    return out


def in_stream(
    step: Step, video: Float[Array, "B T H W C"], frames: int, first_frames: int
) -> Float[Array, "B T2 H2 W2 O"]:
    """`step` of the first frames, then of `frames` frames at a time.

    The result is that of the whole clip for a `step` that keeps all that later frames depend on. Its state has the same
    shapes after every piece. Memory is that of one piece, the state and the result. Raises `UserError` where the later
    frames do not divide.
    """
    check_value(frames, Size, "frames")
    count, rest = divmod(video.shape[1] - first_frames, frames)
    if rest or count < 0:
        raise UserError(f"frames={frames} at a time after the first {first_frames} of {video.shape[1]}; permitted: "
                        "divisors of the later frames")
    first, state = step(video[:, :first_frames], None)
    if not count:
        return first
    piece = jax.ShapeDtypeStruct((len(video), frames, *video.shape[2:]), video.dtype)
    part, _ = jax.eval_shape(step, piece, state)
    out = jnp.zeros((len(video), first.shape[1] + count * part.shape[1], *first.shape[2:]), first.dtype)
    out = lax.dynamic_update_slice_in_dim(out, first, 0, axis=1)

    def add(carry: tuple[Array, Any], number: Array) -> tuple[tuple[Array, Any], None]:
        out, state = carry
        y, state = step(lax.dynamic_slice_in_dim(video, first_frames + number * frames, frames, axis=1), state)
        place = first.shape[1] + number * part.shape[1]
        return (lax.dynamic_update_slice_in_dim(out, y, place, axis=1), state), None

    return lax.scan(add, (out, state), jnp.arange(count))[0][0]


def in_blended_clips(
    function: Function, video: Float[Array, "B T H W C"], frames: int, stride: int
) -> Float[Array, "B T2 H2 W2 O"]:
    """`function` of pieces of `1 + frames` frames, each a clip of its own, blended linearly where they overlap.

    Args:
      function: of 1 + n frames to 1 + f n, f a whole number or one over one.
      frames: of a piece after its first one, as of `video`; later pieces may be shorter.
      stride: frames from the beginning of a piece to that of the next one.

    The first frame that comes out of a piece is thrown away, but for that of the clip. Of the `frames - stride` frames
    that two pieces share after it, the later piece has the share 0 of the first one, then 1 over their number more of
    each. Raises `UserError` for sizes that do not fit.
    """
    length, shared = video.shape[1], frames - stride
    first = function(video[:, : min(1 + frames, length)])
    factor = Fraction(first.shape[1] - 1, min(frames, length - 1)) if length > 1 else Fraction(1)
    if not 0 < stride <= frames or any((size * factor).denominator > 1 for size in (length - 1, frames, stride)):
        raise UserError(f"stride={stride} between pieces of frames={frames} after their first one, of clips of "
                        f"{length}, whose number changes by {factor}; permitted: a stride from 1 to the frames, and "
                        f"multiples of {factor.denominator}")

    def changed(count: Any) -> Any:
        return count * factor.numerator // factor.denominator

    def blended(out: Array, piece: Array, start: Any) -> Array:
        y, place = function(piece)[:, 1:], 1 + changed(start)
        share = jnp.minimum(jnp.arange(y.shape[1]) / max(changed(shared), 1), 1) if shared else jnp.ones(y.shape[1])
        share = share[:, None, None, None].astype(y.dtype)
        before = lax.dynamic_slice_in_dim(out, place, y.shape[1], axis=1)
        return lax.dynamic_update_slice_in_dim(out, before * (1 - share) + y * share, place, axis=1)

    def add(out: Array, number: Array) -> tuple[Array, None]:
        start = number * stride
        return blended(out, lax.dynamic_slice_in_dim(video, start, 1 + frames, axis=1), start), None

    out = jnp.zeros((len(video), 1 + changed(length - 1), *first.shape[2:]), first.dtype)
    out = lax.dynamic_update_slice_in_dim(out, first, 0, axis=1)
    whole = max((length - 1 - frames) // stride, 0)  # further pieces of all their frames
    if whole:
        out, _ = lax.scan(add, out, jnp.arange(1, 1 + whole))
    for start in range((1 + whole) * stride, length - 1, stride):
        out = blended(out, video[:, start:], start)
    return out


def in_tiles(
    function: Function, video: Float[Array, "B T H W C"], tile: tuple[int, int], overlap: int
) -> Float[Array, "B T2 H2 W2 O"]:
    """`function` of tiles of each frame, blended linearly where they overlap.

    Args:
      function: which changes height and width by the same factor, a whole number or one over one.
      tile: rows and columns of a tile, as of `video`; a frame that is smaller is one tile.
      overlap: rows and columns that neighbouring tiles share at least, as of `video`.

    A function that shrinks must have tiles and overlaps in multiples of what it makes one of. Attention and norms see
    the tile, so that the result is close to that of the whole and not equal to it. Raises `UserError` for sizes that do
    not fit.
    """
    tile = tuple(min(size, side) for size, side in zip(tile, video.shape[2:4], strict=True))
    if overlap < 0 or any(size <= overlap < side for size, side in zip(tile, video.shape[2:4], strict=True)):
        raise UserError(f"overlap={overlap} of tiles of {tile[0]}x{tile[1]}; permitted: 0 or more and less than a tile")
    piece = jax.eval_shape(function, jax.ShapeDtypeStruct((*video.shape[:2], *tile, video.shape[4]), video.dtype))
    factor = Fraction(piece.shape[2], tile[0])
    sizes = (*video.shape[2:4], *tile, overlap)
    if 1 not in (factor.numerator, factor.denominator) or any((size * factor).denominator > 1 for size in sizes):
        raise UserError(f"tiles of {tile[0]}x{tile[1]} with overlap={overlap} of frames of {video.shape[2]}x"
                        f"{video.shape[3]} change by {factor}; permitted: multiples of {factor.denominator}")
    rows, columns = (_starts(side, size, overlap, factor.denominator)
                     for side, size in zip(video.shape[2:4], tile, strict=True))
    out_shape = [int(side * factor) for side in video.shape[2:4]]
    weights = [_weights(starts, side, size, overlap, factor) for starts, side, size in
               zip((rows, columns), video.shape[2:4], tile, strict=True)]
    places = jnp.asarray(list(product(range(len(rows)), range(len(columns))))).T  # numbers of row and column

    def add(out: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
        row, column = jnp.asarray(rows)[place[0]], jnp.asarray(columns)[place[1]]
        part = lax.dynamic_slice(video, (0, 0, row, column, 0), (*video.shape[:2], *tile, video.shape[4]))
        weight = jnp.asarray(weights[0])[place[0]][:, None] * jnp.asarray(weights[1])[place[1]]
        y = function(part) * weight[..., None].astype(piece.dtype)
        corner = (0, 0, *(start * factor.numerator // factor.denominator for start in (row, column)), 0)
        there = lax.dynamic_slice(out, corner, y.shape)
        return lax.dynamic_update_slice(out, there + y, corner), None

    out = jnp.zeros((*piece.shape[:2], *out_shape, piece.shape[4]), piece.dtype)
    return lax.scan(add, out, tuple(places))[0]


def _starts(side: int, size: int, overlap: int, multiple: int) -> Int[np.ndarray, " N"]:
    """Where tiles begin, evenly, so that the last ends with the side; in multiples of `multiple`."""
    count = 1 if side == size else math.ceil((side - overlap) / (size - overlap))
    return np.array([round(Fraction(i * (side - size), max(count - 1, 1) * multiple)) * multiple
                     for i in range(count)])


def _weights(
    starts: Int[np.ndarray, " N"], side: int, size: int, overlap: int, factor: Fraction
) -> Float[np.ndarray, "N S"]:
    """Share of every tile in each of its rows (or columns) of the output; shares of a row add up to 1.

    A share grows linearly over the overlap from each edge of the tile that is not one of the frame.
    """
    place = np.arange(int(size * factor)) + 0.5
    ramp = max(float(overlap * factor), 1.0)
    shares = np.zeros((len(starts), int(side * factor)))
    for i, start in enumerate(starts):
        first, last = start == 0, start + size == side
        up = np.ones_like(place) if first else np.minimum(place / ramp, 1)
        down = np.ones_like(place) if last else np.minimum((len(place) - place) / ramp, 1)
        begin = int(start * factor)
        shares[i, begin : begin + len(place)] = up * down
    shares /= shares.sum(0)
    return np.stack([row[int(start * factor) :][: len(place)] for row, start in zip(shares, starts, strict=True)]
                    ).astype(np.float32)
