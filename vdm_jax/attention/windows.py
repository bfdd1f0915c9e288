"""Patterns whose relations follow from the shape of the video: windows that move inwards at its borders, and windows
that shrink with the distance of two frames."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from vdm_jax.attention.products import Pattern, Shape, Sum, TokenOrder, at_least, at_most, split
from vdm_jax.configuration import OddSize, Size, config
from vdm_jax.errors import UserError

AXES = ("frames", "height", "width")


class Axial(Sum):
    """One product whose relations are those of frames, of rows and of columns, each along its own axis."""

    def along(self, axis: int, query, key, length: int):
        """Whether place `query` of an axis (0: frames, 1: rows, 2: columns) of `length` places sees place `key`:
        elementwise bool, of comparisons and integer arithmetic only."""
        raise NotImplementedError(f"{type(self).__name__}.along")

    def check(self, shape: Shape) -> None:
        """Raise `UserError` for a shape on which the pattern is not defined."""

    def terms(self, shape):
        self.check(shape)
        return (OnClip(self, shape[0]),)


@dataclasses.dataclass(frozen=True)
class OnClip(Pattern):
    """An axial pattern on clips of so many frames."""

    pattern: Axial
    frames: int

    def frame_visible(self, query, key):
        return self.pattern.along(0, query, key, self.frames)

    def position_visible(self, query, key, size):
        (query_row, query_column), (key_row, key_column) = (split(x, size[1]) for x in (query, key))
        rows, columns = self.pattern.along(1, query_row, key_row, size[0]), self.pattern.along(
            2, query_column, key_column, size[1])
        return rows & columns

    def covers_frame(self, size):
        return all(_axis_table(self.pattern, axis, length).all() for axis, length in enumerate(size, 1))

    def row_span(self, size):
        table = _axis_table(self.pattern, 1, size[0])
        return table.argmax(axis=1), size[0] - 1 - table[:, ::-1].argmax(axis=1)

    def bounded_frames(self):
        return self.pattern.bounded_frames()

    def position_pairs(self, size):
        return int(np.prod([_axis_table(self.pattern, axis, length).sum() for axis, length in enumerate(size, 1)]))


@functools.lru_cache(maxsize=64)
def _axis_table(pattern: Axial, axis: int, length: int) -> np.ndarray:
    """Which place of an axis sees which, bool `[L, L]`."""
    places = np.arange(length)
    return pattern.along(axis, places[:, None], places[None, :], length)


@config
class Neighbourhood(Axial):
    """Each token sees as many tokens as a box holds, centred on it where it fits: at a border the box moves inwards
    (Hassani et al. 2022, 2204.07143), unlike that of `LocalWindow`.

    `dilation` d: every d-th place along an axis, those with the same remainder as the query's (Hassani & Shi 2022,
    2209.15001). `stride` s: runs of s queries share the box of the middle one, the right of two (generalised
    neighbourhood attention: Hassani et al. 2025, 2504.16922). `causal`: along time the box ends at the query's frame,
    and is cut off at the start of the clip. Each is for frames, rows, columns. Raises `UserError` for videos that are
    smaller than the box.
    """

    frames: Size = 3  # extent of the box
    height: Size = 7  # tokens
    width: Size = 7  # tokens
    stride: tuple[Size, Size, Size] = (1, 1, 1)
    dilation: tuple[Size, Size, Size] = (1, 1, 1)
    causal: bool = False

    def __post_init__(self):
        for axis, window, stride in zip(AXES, self.window, self.stride, strict=True):
            if stride > window:
                raise UserError(f"Neighbourhood.stride={self.stride} with {axis}={window}; permitted: strides up to "
                                "the box, so that every query sees itself")

    @property
    def window(self) -> tuple[int, int, int]:
        """The box."""
        return self.frames, self.height, self.width

    def check(self, shape):
        for axis, window, dilation, length in zip(AXES, self.window, self.dilation, shape, strict=True):
            if window * dilation > length:
                raise UserError(f"Neighbourhood.{axis}={window} with dilation {dilation} on {length} "
                                f"{'frames' if axis == 'frames' else f'tokens of {axis}'}; permitted: a box times its "
                                f"dilation of at most {length}")

    def along(self, axis, query, key, length):
        window, stride, dilation = self.window[axis], self.stride[axis], self.dilation[axis]
        (query, lane), (key, key_lane) = split(query, dilation), split(key, dilation)
        if dilation > 1:  # places of the axis with this remainder
            length = split(length - 1 - lane, dilation)[0] + 1
        run = query if stride == 1 else split(query, stride)[0] * stride
        if self.causal and axis == 0:
            leader = at_most(run + (stride - 1), length - 1)
            seen = (key <= query) & (leader - key < window)
        else:
            leader = at_most(run + stride // 2, length - 1)
            start = at_most(at_least(leader - window // 2, 0), length - window)
            seen = (key >= start) & (key < start + window)
        return seen if dilation == 1 else seen & (lane == key_lane)

    def bounded_frames(self):
        return True


@config
class SlidingTiles(Axial):
    """Each token sees whole tiles: as many as `window` holds, centred on its own where they fit and moved inwards at
    the borders (sliding tile attention: Zhang et al. 2025, 2502.04507).

    With `order="tiles"` the tokens of a tile lie side by side while attention is computed: `gather` then reads the
    tiles that a query sees and masks nothing, nor does `splash` where its blocks divide a tile; other kernels mask
    blocks that hold several tiles. It takes no frame mask, frame validity or bias. Raises `UserError` for videos that
    are not whole tiles.
    """

    tile: tuple[Size, Size, Size] = (4, 8, 8)  # frames, rows, columns, in tokens
    window: tuple[OddSize, OddSize, OddSize] = (3, 3, 3)  # tiles
    order: Literal["tiles", "frames"] = "tiles"

    def check(self, shape):
        if any(length % side for length, side in zip(shape, self.tile, strict=True)):
            raise UserError(f"SlidingTiles.tile={self.tile} on {'x'.join(map(str, shape))} tokens; permitted: sides "
                            "that divide frames, height and width")

    def along(self, axis, query, key, length):
        side = self.tile[axis]
        return self.tiles_along(axis, split(query, side)[0], split(key, side)[0], length // side)

    def tiles_along(self, axis: int, query, key, count: int):
        """Whether tile `query` of an axis of `count` tiles sees tile `key`."""
        window = min(self.window[axis], count)
        start = at_most(at_least(query - self.window[axis] // 2, 0), count - window)
        return (key >= start) & (key < start + window)

    def token_order(self, shape):
        if self.order == "frames":
            return None
        self.check(shape)
        grid = tuple(length // side for length, side in zip(shape, self.tile, strict=True))
        how = "b (t x) (h y) (w z) k d -> b (t h w) 1 (x y z) k d"
        sizes = dict(zip("thwxyz", (*grid, *self.tile), strict=True))
        return TokenOrder(TileGrid(self, grid), (int(np.prod(grid)), 1, int(np.prod(self.tile))), how, sizes)

    def bounded_frames(self):
        return True


@dataclasses.dataclass(frozen=True)
class TileGrid(Pattern):
    """`SlidingTiles` on tokens in tile order: tiles take the place of frames."""

    pattern: SlidingTiles
    grid: tuple[int, int, int]  # tiles along time, height and width

    def frame_visible(self, query, key):
        seen = True
        for axis in (2, 1, 0):
            (query, place), (key, key_place) = split(query, self.grid[axis]), split(key, self.grid[axis])
            seen = self.pattern.tiles_along(axis, place, key_place, self.grid[axis]) & seen
        return seen

    def bounded_frames(self):
        return True


@config
class Radial(Sum):
    """Each token sees its own and the neighbouring frames whole, and of frames at a distance of 2^r to 2^(r+1) - 1 the
    positions (row by row) less than floor(N / 2^r) away, N of a frame; where that is 0, its own position in every
    ceil(2^r / N)-th frame (radial attention: Li et al. 2025, 2506.19852). With `sink`, the first frame whole too."""

    sink: bool = True

    def terms(self, shape):
        frames, tokens = shape[0], shape[1] * shape[2]
        bands = [RadialBand(r, tokens, self.sink) for r in range(max((frames - 1).bit_length(), 1))]
        return (RadialBand(None, tokens, True), *bands) if self.sink and frames > 2 else tuple(bands)


@dataclasses.dataclass(frozen=True)
class RadialBand(Pattern):
    """The frames at a distance of 2^octave to 2^(octave+1) - 1, and 0 for the nearest, among frames of so many tokens.
    With None for an octave: the first frame, seen from all that do not see it whole anyway."""

    octave: int | None
    tokens: int
    sink: bool

    def frame_visible(self, query, key):
        apart = at_least(query - key, key - query)
        if self.octave is None:
            return (key == 0) & (apart >= 2)
        seen = apart < 2 ** (self.octave + 1)
        if self.octave:
            seen = seen & (apart >= 2**self.octave)
            if self.sink:
                seen = seen & (key > 0)
        step = -(-(2**self.octave) // self.tokens)
        return seen if step == 1 or self.octave == 0 else seen & (split(apart, step)[1] == 0)

    def position_visible(self, query, key, size):
        width = self._width
        return (query - key < width) & (key - query < width)

    def covers_frame(self, size):
        return self._width >= size[0] * size[1]

    def row_reach(self, size):
        return min(-(-(self._width - 1) // size[1]), size[0])

    def position_pairs(self, size):
        tokens, reach = size[0] * size[1], min(self._width, size[0] * size[1]) - 1
        return tokens * (2 * reach + 1) - reach * (reach + 1)

    @property
    def _width(self) -> int:
        return self.tokens if self.octave is None else max(self.tokens >> self.octave, 1)
