"""What a pattern is to kernels and contexts: a short disjoint sum of products, on a video of one shape.

Tokens of a video `[T, H, W]` are numbered `frame * N + row * W + column` with `N = H * W`. A product is a relation
between frames times a relation between positions inside a frame. Most patterns are one product whatever the video; a
`Sum` says of which products it is the sum once the shape is known, so that a frame relation may ask for the length of
the clip (windows that move inwards at its ends) and positions may see less the further two frames are apart. Masks,
gathered frames, block maps and pair counts follow from the products, term by term.
"""

from __future__ import annotations

import functools
import operator
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

Shape = tuple[int, int, int]  # frames, height, width of the video, in tokens


def split(number, run: int):
    """Quotient and remainder of numbers >= 0.

    For jax arrays by `lax.div`, which truncates: floor division would handle signs, which costs operations in a kernel
    and asks the TPU compiler for a device that is not there when lowering elsewhere.
    """
    if isinstance(number, jax.Array):
        quotient = jax.lax.div(number, jnp.asarray(run, number.dtype))
        return quotient, number - quotient * run
    return number // run, number % run


def at_least(number, least):
    """The larger of each number and `least`, for numpy and jax integer arrays alike."""
    return jnp.maximum(number, least) if isinstance(number, jax.Array) else np.maximum(number, least)


def at_most(number, most):
    """The smaller of each number and `most`, for numpy and jax integer arrays alike."""
    return jnp.minimum(number, most) if isinstance(number, jax.Array) else np.minimum(number, most)


class VisibleFrames(NamedTuple):
    """The frames each query frame sees, packed to the front: `index` int `[T, M]`, `valid` bool `[T, M]`."""

    index: np.ndarray
    valid: np.ndarray


class TokenOrder(NamedTuple):
    """Tokens in another order, in which each query sees whole runs of keys: a video of `shape` whose "frames" are the
    tiles, its pattern, and einops patterns with their sizes for the way there and back."""

    pattern: Pattern
    shape: Shape
    how: str
    sizes: dict[str, int]

    def there(self, x: Float[Array, "B T H W K D"]) -> Float[Array, "B N 1 M K D"]:
        """Tokens tile by tile."""
        before, after = self.how.split(" -> ")
        return rearrange(x, f"{before} -> {after}", **self.sizes)

    def back(self, x: Float[Array, "B N 1 M K D"]) -> Float[Array, "B T H W K D"]:
        """Tokens frame by frame."""
        before, after = self.how.split(" -> ")
        return rearrange(x, f"{after} -> {before}", **self.sizes)


class Pattern:
    """What all patterns share. One that is a product overrides the layout and one or both relations."""

    layout: ClassVar[str] = "all"

    def terms(self, shape: Shape) -> tuple[Pattern, ...]:
        """The products whose disjoint sum the pattern is on a video of `shape`; each answers the relations below.
        Raises `UserError` for a shape on which the pattern is not defined."""
        return (self,)

    def frame_visible(self, query, key):
        """Whether frame `query` sees frame `key`: elementwise bool of two broadcastable integer arrays."""
        return (query == query) & (key == key)

    def position_visible(self, query, key, size: tuple[int, int]):
        """Whether position `query` (row * W + column) sees position `key` in a frame of `size` (H, W)."""
        return (query == query) & (key == key)

    def covers_frame(self, size: tuple[int, int]) -> bool:
        """Whether every position of a frame of `size` sees every other, so that no mask inside a frame is needed. False
        may also say that a pattern does not know: then the mask is there, and full."""
        return type(self).position_visible is Pattern.position_visible

    def row_reach(self, size: tuple[int, int]) -> int:
        """Most rows between two positions of which one may see the other, in a frame of `size`."""
        return size[0]

    def row_span(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last row that positions of each row may see in a frame of `size`, int `[H]` each; they may
        lie outside of it."""
        row, reach = np.arange(size[0]), self.row_reach(size)
        return row - reach, row + reach

    def token_order(self, shape: Shape) -> TokenOrder | None:
        """The order in which the tokens of a video are computed; None: as they are numbered."""
        return None

    def bounded_frames(self) -> bool:
        """Whether a query frame sees a number of frames that does not grow with the clip."""
        return False

    def sees(self, query, key, shape: Shape):
        """Whether token `query` sees token `key`: elementwise bool for numpy and jax integer arrays alike.

        Made of comparisons and integer arithmetic only, so that a TPU kernel can evaluate it from token numbers.
        """
        (query_frame, query), (key_frame, key) = (split(x, shape[1] * shape[2]) for x in (query, key))
        return functools.reduce(operator.or_, (
            term.frame_visible(query_frame, key_frame) & term.position_visible(query, key, shape[1:])
            for term in self.terms(shape)))

    def visible(self, shape: Shape) -> np.ndarray:
        """Dense mask `[S, S]`, True where the query (row) sees the key (column): the oracle of the tests."""
        tokens = np.arange(int(np.prod(shape)))
        return self.sees(tokens[:, None], tokens[None, :], shape)

    def frame_table(self, frames: int, frame_mask: np.ndarray | None = None) -> np.ndarray:
        """Which frame sees which by a product, bool `[T, T]`, with an extra `frame_mask` `[T, T]` taken into account.

        A frame that pattern and mask together leave without any other sees itself where the mask permits it: an
        appended independent image is a clip of one frame (under sparse-causal attention it would see nothing).
        """
        return _masked_tables((self,), frames, frame_mask)[0]

    def key_frames(self, frames: int, frame_mask: np.ndarray | None = None) -> VisibleFrames:
        """For each query frame the frames it sees by a product, for kernels that gather them."""
        return visible_frames(self.frame_table(frames, frame_mask))

    def position_pairs(self, size: tuple[int, int]) -> int:
        """Number of visible (query, key) pairs of positions between two frames that see each other: counted, unless all
        of them are."""
        return (size[0] * size[1]) ** 2 if self.covers_frame(size) else _counted_pairs(self, size)

    def pairs(self, shape: Shape, frame_mask: np.ndarray | None = None) -> int:
        """Number of visible (query, key) pairs of tokens, without building the mask over tokens."""
        mask = None if frame_mask is None else np.asarray(frame_mask, bool).tobytes()
        return sum(int(table.sum()) * term.position_pairs(shape[1:]) for term, table in products(self, shape, mask))


class Sum(Pattern):
    """A pattern whose relations follow from the shape of the video: it overrides `terms`."""

    def terms(self, shape: Shape) -> tuple[Pattern, ...]:
        """See `Pattern.terms`."""
        raise NotImplementedError(f"{type(self).__name__}.terms")

    def frame_visible(self, query, key):
        """No answer: the terms have it."""
        raise TypeError(f"{type(self).__name__} has relations on a video only: ask those of terms(shape)")

    def position_visible(self, query, key, size):
        """No answer: the terms have it."""
        return self.frame_visible(query, key)


@functools.lru_cache(maxsize=128)  # asked for many times while a network is traced
def products(pattern: Pattern, shape: Shape, frame_mask: bytes | None = None) -> tuple[tuple[Pattern, np.ndarray], ...]:
    """The terms of a pattern on a video, each with the frames that see each other by it, bool `[T, T]`, read-only;
    terms by which none do are left out, but for one.

    With the frame mask of joint training the clip ends where the appended images begin. A frame that terms and mask
    together leave alone sees itself as the first term shows positions.
    """
    frames = shape[0]
    mask = None if frame_mask is None else np.frombuffer(frame_mask, bool).reshape(frames, frames)
    terms = pattern.terms((frames - (appended_images(mask) or 0), *shape[1:]))
    found = list(zip(terms, _masked_tables(terms, frames, mask), strict=True))
    for _, table in found:
        table.setflags(write=False)
    return tuple(product for product in found if product[1].any()) or (found[0],)


def frame_table(pattern: Pattern, shape: Shape, frame_mask: bytes | None = None) -> np.ndarray:
    """Which frame sees which by any term, bool `[T, T]`."""
    tables = [table for _, table in products(pattern, shape, frame_mask)]
    return tables[0] if len(tables) == 1 else np.any(tables, axis=0)


def visible_frames(table: np.ndarray) -> VisibleFrames:
    """For each query frame the frames it sees, from a table bool `[T, T]`."""
    most = max(int(table.sum(axis=1).max()), 1)
    order = np.argsort(~table, axis=1, kind="stable")[:, :most]  # visible ones first, in order of time
    valid = np.take_along_axis(table, order, axis=1)
    return VisibleFrames(np.where(valid, order, order[:, :1]).astype(np.int32), valid)


def independent_frames_mask(frames: int, images: int) -> np.ndarray:
    """Frame mask `[T+n, T+n]` for joint image-video training (Ho et al. 2022, arXiv 2204.03458, section 3).

    The first `frames` frames are a clip and see each other; each of the `images` appended ones sees only itself.
    """
    index = np.arange(frames + images)
    clip = index < frames
    return (clip[:, None] & clip[None, :]) | (index[:, None] == index[None, :])


def appended_images(frame_mask: np.ndarray | None) -> int | None:
    """Number of appended independent images if the frame mask is that of joint training, 0 without a mask."""
    if frame_mask is None:
        return 0
    frames = len(frame_mask)
    images = frames - int(frame_mask[0].sum())  # the first frame sees the clip
    return images if np.array_equal(frame_mask, independent_frames_mask(frames - images, images)) else None


def _masked_tables(terms: tuple[Pattern, ...], frames: int, frame_mask: np.ndarray | None) -> list[np.ndarray]:
    tables = [_frame_table(term, frames) for term in terms]
    if frame_mask is None:
        return tables
    tables = [table & frame_mask for table in tables]
    alone = ~np.any(tables, axis=(0, 2)) & np.diagonal(frame_mask)
    return [tables[0] | np.diag(alone), *tables[1:]]


@functools.lru_cache(maxsize=128)
def _frame_table(term: Pattern, frames: int) -> np.ndarray:
    """Which frame sees which by the product alone, bool `[T, T]`, read-only."""
    index = np.arange(frames)
    table = term.frame_visible(index[:, None], index[None, :])
    table.flags.writeable = False
    return table


@functools.lru_cache(maxsize=256)
def _counted_pairs(pattern: Pattern, size: tuple[int, int]) -> int:
    """`position_pairs` by looking at every pair, some rows of queries at a time."""
    keys = np.arange(size[0] * size[1])
    return sum(int(np.sum(pattern.position_visible(keys[start : start + 256, None], keys[None, :], size)))
               for start in range(0, len(keys), 256))
