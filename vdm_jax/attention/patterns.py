"""Attention patterns: which token sees which, as one value-hashed object each.

Every pattern is a product of a relation between frames and a relation between positions inside a frame, or a disjoint
sum of such products (`products.py`). It also names the *layout* in which it is computed: `frames` (each frame is a
sequence of its own), `positions` (each position is) or `all` (the clip is one sequence). Spatial and temporal attention
are layouts, never masks: masking them out of full attention would do the work of full attention.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Literal

import numpy as np

from vdm_jax.attention.products import Pattern, Shape, Sum, split
from vdm_jax.attention.products import independent_frames_mask as independent_frames_mask
from vdm_jax.attention.windows import Neighbourhood, Radial, SlidingTiles
from vdm_jax.configuration import Length, OddSize, Size, SizeOrZero, config
from vdm_jax.errors import UserError


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


OneForAllHeads = (Spatial | Temporal | Full | Causal | BlockCausal | TeacherForcing | TemporalCausal | SparseCausal
                  | FirstFrames | LocalWindow | Neighbourhood | SlidingTiles | Radial)


@config
class PerHead(Sum):
    """A pattern of their own for equal groups of heads, in order: some heads spatial and some temporal, as Sparse
    VideoGen finds them to be (Xi et al. 2025, 2502.01776). `attend` computes one group after the other."""

    groups: Annotated[tuple[OneForAllHeads, ...], Length(2)] = (Spatial(), Temporal())

    @property
    def layout(self) -> str:
        """Layout of the groups, `all` where they differ."""
        layouts = {pattern.layout for pattern in self.groups}
        return layouts.pop() if len(layouts) == 1 else "all"

    def terms(self, shape):
        raise TypeError("PerHead has no terms: ask those of its groups")

    def bounded_frames(self):
        return all(pattern.bounded_frames() for pattern in self.groups)


OwnPattern = OneForAllHeads | PerHead


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

    def terms(self, shape):
        return self.inner.terms(shape) if self.mode == "append" else (self,)

    def frame_visible(self, query, key):
        return self.inner.frame_visible(query, key) if self.mode == "append" else (query != query) | (key != key)

    def position_visible(self, query, key, size):
        of = self.inner if self.mode == "append" else super()
        return of.position_visible(query, key, size)

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


AttentionPattern = OwnPattern | WithExtraKeys


def by_heads(pattern: Pattern) -> tuple[Pattern, ...]:
    """The patterns of equal groups of heads: the pattern itself where all have the same."""
    if isinstance(pattern, WithExtraKeys):
        return tuple(dataclasses.replace(pattern, inner=inner) for inner in by_heads(pattern.inner))
    return pattern.groups if isinstance(pattern, PerHead) else (pattern,)


def heads_of(pattern: Pattern, heads: int) -> int:
    """Heads of each group of `by_heads`. Raises `UserError` when the groups do not divide them."""
    groups = len(by_heads(pattern))
    if heads % groups:
        raise UserError(f"attention pattern PerHead of {groups} groups with {heads} heads; permitted: multiples of "
                        f"{groups}")
    return heads // groups


def context_of(pattern: Pattern, context: str) -> str:
    """Where a group of heads computes when the others do in `context`: spatial attention has nothing to exchange."""
    return "none" if pattern.layout == "frames" else context


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
    statistics does 2.5 times as much (five products of this size against two). Raises `UserError` for heads that the
    groups of a `PerHead` pattern do not divide.
    """
    heads = heads_of(pattern, heads)
    pairs = sum(one.pairs(shape, frame_mask) + int(np.prod(shape)) * extra_keys for one in by_heads(pattern))
    return 4 * pairs * heads * head_dim


@functools.lru_cache(maxsize=256)
def check_layout(pattern: Pattern, shape: Shape) -> None:
    """Raise `UserError` for a pattern that sees what its layout puts into other sequences, or nothing of its own: such
    tokens would be left out without a word. Positions are looked at in a corner of the frame."""
    frames, corner = np.arange(shape[0]), tuple(min(side, 4) for side in shape[1:])
    positions = np.arange(corner[0] * corner[1])
    if pattern.layout == "all":
        return
    term, *more = pattern.terms(shape)
    if pattern.layout == "frames":
        fits = np.array_equal(term.frame_visible(frames[:, None], frames[None, :]), np.eye(shape[0], dtype=bool))
    elif pattern.layout == "positions":
        seen = term.position_visible(positions[:, None], positions[None, :], corner)
        fits = np.array_equal(seen, np.eye(len(positions), dtype=bool))
    else:
        raise UserError(f"attention pattern {pattern} has layout={pattern.layout!r}; permitted: 'frames', 'positions', "
                        "'all'")
    if more or not fits:
        raise UserError(f"attention pattern {pattern} has layout={pattern.layout!r}, but sees other {pattern.layout}; "
                        "permitted: layout='all'")


def _window_pairs(length: int, reach: int) -> int:
    """Pairs of `length` places at most `reach` apart."""
    reach = min(reach, length - 1)
    return length * (2 * reach + 1) - reach * (reach + 1)
