"""Attention patterns: which token sees which, as one value-hashed object each.

Tokens of a video `[T, H, W]` are numbered `frame * N + row * W + column` with `N = H * W`. Every pattern is the
product of a relation between frames and a relation between positions inside a frame; masks, gathered frames, block
maps and pair counts all follow from these two. A pattern also names the *layout* in which it is computed: `frames`
(each frame is a sequence of its own), `positions` (each position is) or `all` (the clip is one sequence). Spatial and
temporal attention are layouts, never masks: masking them out of full attention would do the work of full attention.
"""

from __future__ import annotations

import functools
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.configuration import OddSize, Size, SizeOrZero, config
from vdm_jax.errors import UserError

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


class VisibleFrames(NamedTuple):
    """The frames each query frame sees, packed to the front: `index` int `[T, M]`, `valid` bool `[T, M]`."""

    index: np.ndarray
    valid: np.ndarray


class Pattern:
    """What all patterns share; a pattern overrides the layout and one or both relations."""

    layout: ClassVar[str] = "all"

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

    def bounded_frames(self) -> bool:
        """Whether a query frame sees a number of frames that does not grow with the clip."""
        return False

    def sees(self, query, key, shape: Shape):
        """Whether token `query` sees token `key`: elementwise bool for numpy and jax integer arrays alike.

        Made of comparisons and integer arithmetic only, so that a TPU kernel can evaluate it from token numbers.
        """
        (query_frame, query), (key_frame, key) = (split(x, shape[1] * shape[2]) for x in (query, key))
        return self.frame_visible(query_frame, key_frame) & self.position_visible(query, key, shape[1:])

    def visible(self, shape: Shape) -> np.ndarray:
        """Dense mask `[S, S]`, True where the query (row) sees the key (column): the oracle of the tests."""
        tokens = np.arange(int(np.prod(shape)))
        return self.sees(tokens[:, None], tokens[None, :], shape)

    def frame_table(self, frames: int, frame_mask: np.ndarray | None = None) -> np.ndarray:
        """Which frame sees which, bool `[T, T]`, with an extra `frame_mask` `[T, T]` taken into account.

        A frame that pattern and mask together leave without any other sees itself where the mask permits it: an
        appended independent image is a clip of one frame (under sparse-causal attention it would see nothing).
        """
        table = _frame_table(self, frames)
        if frame_mask is not None:
            table = table & frame_mask
            alone = ~table.any(axis=1) & np.diagonal(frame_mask)
            table = table | np.diag(alone)
        return table

    def key_frames(self, frames: int, frame_mask: np.ndarray | None = None) -> VisibleFrames:
        """For each query frame the frames it sees, for kernels that gather them."""
        table = self.frame_table(frames, frame_mask)
        most = max(int(table.sum(axis=1).max()), 1)
        order = np.argsort(~table, axis=1, kind="stable")[:, :most]  # visible ones first, in order of time
        valid = np.take_along_axis(table, order, axis=1)
        return VisibleFrames(np.where(valid, order, order[:, :1]).astype(np.int32), valid)

    def position_pairs(self, size: tuple[int, int]) -> int:
        """Number of visible (query, key) pairs of positions between two frames that see each other: counted, unless all
        of them are."""
        return (size[0] * size[1]) ** 2 if self.covers_frame(size) else _counted_pairs(self, size)

    def pairs(self, shape: Shape, frame_mask: np.ndarray | None = None) -> int:
        """Number of visible (query, key) pairs of tokens, without building the mask over tokens."""
        return int(self.frame_table(shape[0], frame_mask).sum()) * self.position_pairs(shape[1:])


@functools.lru_cache(maxsize=8)  # asked for many times while a network is traced
def _frame_table(pattern: Pattern, frames: int) -> np.ndarray:
    """Which frame sees which by the pattern alone, bool `[T, T]`, read-only."""
    index = np.arange(frames)
    table = pattern.frame_visible(index[:, None], index[None, :])
    table.flags.writeable = False
    return table


class _SamePosition(Pattern):
    """A token sees its own position only, in whatever frames it sees."""

    layout = "positions"

    def position_visible(self, query, key, size):
        return query == key

    def covers_frame(self, size):
        return size == (1, 1)

    def position_pairs(self, size):
        return size[0] * size[1]


@config
class Spatial(Pattern):
    """Each token sees all tokens of its own frame (frames are batch)."""

    layout = "frames"

    def frame_visible(self, query, key):
        return query == key

    def bounded_frames(self):
        return True


@config
class Temporal(_SamePosition):
    """Each token sees the same position in all frames (positions are batch)."""


@config
class Full(Pattern):
    """Full spatio-temporal attention: every token sees every token of every frame."""


@config
class _PastFrames(Pattern):
    """A token sees its own frame and earlier ones, all or a window of them."""

    window: Size | None = None  # frames seen, the own one included; None: all earlier ones

    def frame_visible(self, query, key):
        past = key <= query
        return past if self.window is None else past & (query - key < self.window)

    def bounded_frames(self):
        return self.window is not None


@config
class Causal(_PastFrames):
    """Each token sees all tokens of its own and of earlier frames."""


@config
class BlockCausal(Pattern):
    """Each token sees all tokens of its own block of frames and of earlier ones (CausVid: Yin et al. 2024, 2412.07772).

    With a window, of the blocks before only frames within `window` of the end of its own, and the first `sink` frames
    of the clip, which stay in sight (Xiao et al. 2023, 2309.17453).
    """

    block: Size = 3  # frames
    window: Size | None = None  # frames seen, the own block included; None: all earlier ones
    sink: SizeOrZero = 0  # first frames of the clip, seen beyond the window

    def __post_init__(self):
        fits = self.window is None or (self.window % self.block == 0 and self.sink % self.block == 0)
        if not fits or (self.sink and self.window is None):
            raise UserError(f"BlockCausal.window={self.window} with sink={self.sink}, block={self.block}; permitted: "
                            "multiples of the block, and a sink with a window only")

    def frame_visible(self, query, key):
        end = split(query, self.block)[0] * self.block + self.block
        visible = key < end
        if self.window is None:
            return visible
        return visible & ((key >= end - self.window) | (key < self.sink))

    def bounded_frames(self):
        return self.window is not None


@config
class TeacherForcing(Pattern):
    """A clean clip and after it its noisy copy, in blocks of frames: clean tokens see clean ones up to the end of their
    block, noisy ones their own block and the clean ones of earlier blocks (Gao et al. 2024, 2411.16375; Self-Forcing:
    Huang et al. 2025, 2506.08009). With `window` and `sink` as in `BlockCausal`."""

    frames: Size  # of the clip; the sequence has twice as many
    block: Size = 3
    window: Size | None = None
    sink: SizeOrZero = 0

    def frame_visible(self, query, key):
        noisy_query, noisy_key = query >= self.frames, key >= self.frames
        query, key = query - noisy_query * self.frames, key - noisy_key * self.frames
        own, of_key = split(query, self.block)[0], split(key, self.block)[0]
        past = BlockCausal(block=self.block, window=self.window, sink=self.sink).frame_visible(query, key)
        from_clean = ~noisy_query & ~noisy_key & past
        from_noisy = noisy_query & ((noisy_key & (own == of_key)) | (~noisy_key & (of_key < own) & past))
        return from_clean | from_noisy


@config
class TemporalCausal(_SamePosition, _PastFrames):
    """Each token sees the same position in its own and earlier frames: the directed attention of MagicVideo (Zhou et
    al. 2022, 2211.11018); with `window=16` the causal mask of Make-Your-Video (Xing et al. 2023, 2306.00943)."""


@config
class SparseCausal(Pattern):
    """Each token sees all tokens of the first, the previous and its own frame, or of some of these.

    {first, previous} is Tune-A-Video (Wu et al. 2022, 2212.11565), {first} is Text2Video-Zero (Khachatryan et al.
    2023, 2303.13439). Each frame counts once even when first and previous coincide. The first frame sees itself.
    """

    first: bool = True
    previous: bool = True
    own: bool = False

    def __post_init__(self):
        if not (self.first or self.previous or self.own):
            raise UserError("SparseCausal with first=False, previous=False, own=False sees nothing; "
                            "permitted: at least one of them True")

    def frame_visible(self, query, key):
        visible = (query == key) & (query == 0)
        for wanted, frames in ((self.first, key == 0), (self.previous, key == query - 1), (self.own, key == query)):
            if wanted:
                visible = visible | frames & (query == query)
        return visible

    def bounded_frames(self):
        return True


@config
class FirstFrames(Pattern):
    """Each token sees all tokens of the first frames of the clip, and no others: a clip that begins with the key frames
    before and after its other ones, as ControlVideo (Zhang et al. 2023, 2305.13077) samples long videos."""

    count: Size = 2  # frames seen

    def frame_visible(self, query, key):
        return (key < self.count) & (query == query)

    def bounded_frames(self):
        return True


@config
class LocalWindow(Pattern):
    """Each token sees a box of tokens centred on it, cut off at the borders of the video."""

    frames: OddSize = 3  # extent of the box
    height: OddSize = 7  # tokens
    width: OddSize = 7  # tokens

    def frame_visible(self, query, key):
        reach = self.frames // 2
        return (query - key <= reach) & (key - query <= reach)

    def position_visible(self, query, key, size):
        down, across = self.height // 2, self.width // 2
        (query_row, query_column), (key_row, key_column) = (split(x, size[1]) for x in (query, key))
        rows, columns = query_row - key_row, query_column - key_column
        return (rows <= down) & (-rows <= down) & (columns <= across) & (-columns <= across)

    def covers_frame(self, size):
        return self.height // 2 >= size[0] - 1 and self.width // 2 >= size[1] - 1

    def row_reach(self, size):
        return self.height // 2

    def bounded_frames(self):
        return True

    def position_pairs(self, size):
        return _window_pairs(size[0], self.height // 2) * _window_pairs(size[1], self.width // 2)


OwnPattern = (Spatial | Temporal | Full | Causal | BlockCausal | TeacherForcing | TemporalCausal | SparseCausal
              | FirstFrames | LocalWindow)


@config
class WithExtraKeys(Pattern):
    """Keys and values from outside the video, seen by all its tokens in addition to (or instead of) what `inner` shows
    them.

    They are given to `attend` as `extra_keys`: reference features (ReferenceNet), key frames (ControlVideo,
    Rerender) or text tokens (Imagen appends them to self-attention).
    """

    inner: OwnPattern = Spatial()
    mode: Literal["append", "replace"] = "append"  # in addition to the own tokens, or instead of them

    @property
    def layout(self) -> str:
        """Layout of the inner pattern."""
        return self.inner.layout

    def frame_visible(self, query, key):
        visible = self.inner.frame_visible(query, key)
        return visible if self.mode == "append" else visible & False

    def position_visible(self, query, key, size):
        return self.inner.position_visible(query, key, size)

    def covers_frame(self, size):
        return self.inner.covers_frame(size)

    def row_reach(self, size):
        return self.inner.row_reach(size)

    def bounded_frames(self):
        return self.inner.bounded_frames()

    def position_pairs(self, size):
        return self.inner.position_pairs(size)

    def pairs(self, shape, frame_mask=None):
        return self.inner.pairs(shape, frame_mask) if self.mode == "append" else 0


AttentionPattern = (Spatial | Temporal | Full | Causal | BlockCausal | TeacherForcing | TemporalCausal | SparseCausal
                    | FirstFrames | LocalWindow | WithExtraKeys)


def attention_flops(
    pattern: AttentionPattern,
    shape: Shape,
    *,
    heads: int,
    head_dim: int,
    extra_keys: int = 0,
    frame_mask: np.ndarray | None = None,
) -> int:
    """Exact FLOPs (2 per multiply-add) of one clip's forward pass: scores and weighted sum of what the mask shows.

    `extra_keys` is the number of outside tokens that each video token sees. A backward pass from saved softmax
    statistics does 2.5 times as much (five products of this size against two).
    """
    pairs = pattern.pairs(shape, frame_mask) + int(np.prod(shape)) * extra_keys
    return 4 * pairs * heads * head_dim


def independent_frames_mask(frames: int, images: int) -> np.ndarray:
    """Frame mask `[T+n, T+n]` for joint image-video training (Ho et al. 2022, arXiv 2204.03458, section 3).

    The first `frames` frames are a clip and see each other; each of the `images` appended ones sees only itself.
    """
    index = np.arange(frames + images)
    clip = index < frames
    return (clip[:, None] & clip[None, :]) | (index[:, None] == index[None, :])


@functools.lru_cache(maxsize=256)
def check_layout(pattern: Pattern, shape: Shape) -> None:
    """Raise `UserError` for a pattern that sees what its layout puts into other sequences, or nothing of its own: such
    tokens would be left out without a word. Positions are looked at in a corner of the frame."""
    frames, corner = np.arange(shape[0]), tuple(min(side, 4) for side in shape[1:])
    positions = np.arange(corner[0] * corner[1])
    if pattern.layout == "all":
        return
    if pattern.layout == "frames":
        fits = np.array_equal(pattern.frame_visible(frames[:, None], frames[None, :]), np.eye(shape[0], dtype=bool))
    elif pattern.layout == "positions":
        seen = pattern.position_visible(positions[:, None], positions[None, :], corner)
        fits = np.array_equal(seen, np.eye(len(positions), dtype=bool))
    else:
        raise UserError(f"attention pattern {pattern} has layout={pattern.layout!r}; permitted: 'frames', 'positions', "
                        "'all'")
    if not fits:
        raise UserError(f"attention pattern {pattern} has layout={pattern.layout!r}, but sees other {pattern.layout}; "
                        "permitted: layout='all'")


@functools.lru_cache(maxsize=256)
def _counted_pairs(pattern: Pattern, size: tuple[int, int]) -> int:
    """`position_pairs` by looking at every pair, some rows of queries at a time."""
    keys = np.arange(size[0] * size[1])
    return sum(int(np.sum(pattern.position_visible(keys[start : start + 256, None], keys[None, :], size)))
               for start in range(0, len(keys), 256))


def _window_pairs(length: int, reach: int) -> int:
    """Pairs of `length` places at most `reach` apart."""
    reach = min(reach, length - 1)
    return length * (2 * reach + 1) - reach * (reach + 1)
