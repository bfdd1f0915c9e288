"""What a kernel receives of a pattern: the video seen as sequences, and which rows of queries see which of keys.

A `SequenceLayout` turns a pattern, a video shape and a frame mask into sequences `[B*, S, K, D]`; a `BlockMask` is the
static, value-hashed visibility between two such sequences by one product of a pattern, a `SumMask` by several, with the
block map that kernels skip work by.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.patterns import Full
from vdm_jax.attention.products import (
    Pattern,
    Shape,
    VisibleFrames,
    appended_images,
    frame_table,
    products,
    split,
    visible_frames,
)

# einops pattern of each layout: tokens of the video to sequences.
LAYOUTS = {
    "frames": "b t h w k d -> (b t) (h w) k d",
    "positions": "b t h w k d -> (b h w) t k d",
    "all": "b t h w k d -> b (t h w) k d",
}
EMPTY, PARTIAL, FULL = 0, 1, 2  # what a block of a mask holds


class ExtraKeys(NamedTuple):
    """Outside keys and values in groups: one group for the clip (`g` = 1) or one per frame (`g` = T)."""

    k: Float[Array, "B G M K D"]
    v: Float[Array, "B G M K D"]
    mask: Bool[Array, "B G M"] | None = None  # True: the token may be seen


@dataclasses.dataclass(frozen=True)
class BlockMask:
    """Which of `frames[0] * run[0]` queries see which of `frames[1] * run[1]` keys, numbered frame by frame.

    `tokens` of the `run[1]` keys of a frame exist, the rest is padding. `table` holds the frame mask as bytes;
    `rule` is the same as a formula (see `FrameRule`) where there is one. `within` is a pattern that restricts
    positions inside frames of `size` (H, W), or None.
    """

    frames: tuple[int, int]
    run: tuple[int, int]
    tokens: int
    table: bytes
    rule: FrameRule | None = None
    within: Pattern | None = None
    size: tuple[int, int] = (1, 1)
    at_run_time: ClassVar[bool] = False  # whether it asks for the numbers of frames when the program runs

    @property
    def parts(self) -> tuple[BlockMask, ...]:
        """One for every product."""
        return (self,)

    @property
    def lengths(self) -> tuple[int, int]:
        """Number of queries and keys."""
        return self.frames[0] * self.run[0], self.frames[1] * self.run[1]

    @property
    def frame_table(self) -> np.ndarray:
        """Bool `[query frames, key frames]`."""
        return np.frombuffer(self.table, bool).reshape(self.frames)

    @property
    def everything(self) -> bool:
        """Whether every query sees every key."""
        return self.within is None and self.tokens == self.run[1] and bool(self.frame_table.all())

    def sees(self, query, key):
        """Elementwise: whether query number `query` sees key number `key`; keys past the end are never seen."""
        (query_frame, query), (key_frame, key) = split(query, self.run[0]), split(key, self.run[1])
        if self.rule is not None:
            visible = self.rule(query_frame, key_frame) & (key_frame < self.frames[1])
        else:
            inside = [jnp.minimum(f, n - 1) for f, n in zip((query_frame, key_frame), self.frames, strict=True)]
            visible = jnp.asarray(self.frame_table)[tuple(inside)] & (key_frame < self.frames[1])
        if self.tokens < self.run[1]:
            visible = visible & (key < self.tokens)
        if self.within is not None:
            visible = visible & self.within.position_visible(query, key, self.size)
        return visible

    def mask(self) -> Bool[Array, "Q S"] | None:
        """The dense mask, built where it is used from the frame table; None when everything is visible."""
        if self.everything:
            return None
        (q_frames, k_frames), (q_run, k_run) = self.frames, self.run
        mask = jnp.asarray(self.frame_table)[:, None, :, None]
        place = np.arange(k_run) < self.tokens
        mask = mask & jnp.asarray(place)
        if self.within is not None:
            tokens = np.arange(q_run)[:, None], np.arange(k_run)[None, :]
            mask = mask & jnp.asarray(self.within.position_visible(*tokens, self.size))[None, :, None, :]
        return jnp.broadcast_to(mask, (q_frames, q_run, k_frames, k_run)).reshape(self.lengths)

    @functools.lru_cache(maxsize=256)  # noqa: B019  (block masks are small values; block maps are worth keeping)
    def blocks(self, block_q: int, block_k: int) -> np.ndarray:
        """EMPTY, PARTIAL or FULL per block, int8 `[query blocks, key blocks]`, in closed form.

        Blocks past the end count as padding. PARTIAL is an upper bound: a block that positions alone would empty or
        fill may be called partial, never the other way round.
        """
        q_first, q_last = _spans(self.lengths[0], block_q)
        k_first, k_last = _spans(self.lengths[1], block_k)
        q_frame, k_frame = (q_first // self.run[0], q_last // self.run[0]), (k_first // self.run[1],
                                                                          k_last // self.run[1])
        (a, b), (c, d) = q_frame, k_frame
        area = (b - a + 1)[:, None] * (d - c + 1)[None, :]
        if (table := self.frame_table).all():
            count = area
        else:
            seen = np.zeros((self.frames[0] + 1, self.frames[1] + 1), np.int64)
            seen[1:, 1:] = table.cumsum(0).cumsum(1)  # pairs of frames in every rectangle from the origin
            count = seen[np.ix_(b + 1, d + 1)] - seen[np.ix_(a, d + 1)] - seen[np.ix_(b + 1, c)] + seen[np.ix_(a, c)]
        keys = self._keys_before(k_last + 1) - self._keys_before(k_first)
        some, all_ = (count > 0) & (keys > 0)[None, :], (count == area) & (keys == block_k)[None, :]
        if self.within is not None:
            some, all_ = some & self._rows_meet(q_first, q_last, k_first, k_last), np.zeros_like(all_)
        return np.where(all_, FULL, np.where(some, PARTIAL, EMPTY)).astype(np.int8)

    def _keys_before(self, key: np.ndarray) -> np.ndarray:
        """Number of existing keys with a smaller number."""
        frame, place = np.divmod(key, self.run[1])
        return frame * self.tokens + np.minimum(place, self.tokens)

    def _rows_meet(self, q_first, q_last, k_first, k_last) -> np.ndarray:
        """Whether the key block has rows among those that the rows of the query block may see."""
        height, width = self.size
        row, (first_seen, last_seen) = np.arange(height), self.within.row_span(self.size)

        def rows(first, last, run):
            one = first // run == last // run  # a block that spans frames holds rows of all heights
            top = np.where(one, first % run // width, 0)
            return top, np.where(one, last % run // width, height - 1)

        (q_top, q_end), (k_top, k_end) = rows(q_first, q_last, self.run[0]), rows(k_first, k_last, self.run[1])
        q_top, q_end = (np.minimum(a, height - 1)[:, None] for a in (q_top, q_end))  # padding sees as the last row does
        held = (q_top <= row) & (row <= q_end)
        start = np.where(held, first_seen, height).min(axis=1, initial=height)
        end = np.where(held, last_seen, -1).max(axis=1, initial=-1)
        return (start[:, None] <= k_end) & (k_top <= end[:, None])


@dataclasses.dataclass(frozen=True)
class SumMask:
    """What several block masks of the same sequences show together, no pair of tokens twice. Asked like one of them."""

    parts: tuple[BlockMask, ...]

    @property
    def frames(self) -> tuple[int, int]:
        """Frames of queries and of keys."""
        return self.parts[0].frames

    @property
    def run(self) -> tuple[int, int]:
        """Tokens of a frame of queries and of one of keys, padding included."""
        return self.parts[0].run

    @property
    def lengths(self) -> tuple[int, int]:
        """Number of queries and keys."""
        return self.parts[0].lengths

    @property
    def frame_table(self) -> np.ndarray:
        """Bool `[query frames, key frames]`: which see each other by any part."""
        return np.any([part.frame_table for part in self.parts], axis=0)

    @property
    def everything(self) -> bool:
        """Whether every query sees every key."""
        return all(part.within is None and part.tokens == part.run[1] for part in self.parts) and bool(
            self.frame_table.all())

    @property
    def rule(self) -> tuple[FrameRule, ...] | None:
        """The formulas of the parts; None unless all have one."""
        rules = tuple(part.rule for part in self.parts)
        return None if any(rule is None for rule in rules) else rules

    @property
    def within(self) -> Pattern | None:
        """What restricts positions inside frames in some part."""
        return next((part.within for part in self.parts if part.within is not None), None)

    @property
    def at_run_time(self) -> bool:
        """Whether it asks for the numbers of frames when the program runs."""
        return self.parts[0].at_run_time

    def sees(self, query, key, *ids):
        """See `BlockMask.sees`."""
        return _any(part.sees(query, key, *ids) for part in self.parts)

    def mask(self, *ids) -> Bool[Array, "Q S"] | None:
        """See `BlockMask.mask`."""
        return None if self.everything and not ids else _any(part.mask(*ids) for part in self.parts)

    def seen(self, ids: Any) -> Bool[Array, "F G"]:
        """See `ShardMask.seen`."""
        return _any(part.seen(ids) for part in self.parts)

    @functools.lru_cache(maxsize=256)  # noqa: B019  (as of a block mask)
    def blocks(self, block_q: int, block_k: int) -> np.ndarray:
        """See `BlockMask.blocks`: a block that only several parts fill together is called partial."""
        return functools.reduce(np.maximum, (part.blocks(block_q, block_k) for part in self.parts))

    def live(self, block_q: int, block_k: int, ids: Any) -> Bool[Array, "N M"]:
        """See `ShardMask.live`."""
        return _any(part.live(block_q, block_k, ids) for part in self.parts)


AnyMask = BlockMask | SumMask


def _any(masks: Iterable[Array]) -> Array:
    return functools.reduce(operator.or_, masks)


@dataclasses.dataclass(frozen=True)
class FrameRule:
    """Frame visibility as a formula of frame numbers: that of `pattern`, or equality when it is None.

    Frames from `clip` on are independent images, which see themselves if `images` and nothing else.
    """

    pattern: Pattern | None
    clip: int | None = None
    images: bool = True

    def __call__(self, query, key):
        """Elementwise bool."""
        same = query == key
        if self.pattern is None:
            return same
        visible = self.pattern.frame_visible(query, key)
        if self.clip is None:
            return visible
        visible = (query < self.clip) & (key < self.clip) & visible
        return visible | same & (query >= self.clip) if self.images else visible


@dataclasses.dataclass(frozen=True)
class SequenceLayout:
    """A pattern on a video of one shape, with a frame mask (`bytes` of bool `[T, T]`) or without."""

    pattern: Pattern
    shape: Shape
    frame_mask: bytes | None = None

    @property
    def mask(self) -> np.ndarray | None:
        """The frame mask as an array."""
        return None if self.frame_mask is None else np.frombuffer(self.frame_mask, bool).reshape((self.shape[0],) * 2)

    @property
    def tokens(self) -> int:
        """Tokens per frame."""
        return self.shape[1] * self.shape[2]

    @property
    def frame_table(self) -> np.ndarray:
        """Which frame sees which, bool `[T, T]`."""
        return frame_table(self.pattern, self.shape, self.frame_mask)

    @property
    def terms(self) -> tuple[tuple[Pattern, np.ndarray], ...]:
        """The products of the pattern on this video, each with its frame table."""
        return products(self.pattern, self.shape, self.frame_mask)

    @property
    def images(self) -> int | None:
        """Number of appended independent images if the frame mask is that of joint training, 0 without a mask."""
        return appended_images(self.mask)

    @property
    def mask_kind(self) -> str | None:
        """Kind of the frame mask as the capability table names it."""
        if self.frame_mask is None:
            return None
        return "any" if self.images is None else "independent images"

    def key_frames(self) -> VisibleFrames:
        """For each frame the frames it sees."""
        return visible_frames(self.frame_table)

    def rows(self, x: Float[Array, "B T H W K D"]) -> Float[Array, "N S K D"]:
        """The sequences of the pattern's layout."""
        return rearrange(x, LAYOUTS[self.pattern.layout])

    def video(self, x: Float[Array, "N S K D"]) -> Float[Array, "B T H W K D"]:
        """Back from sequences to the video."""
        frames, height, width = self.shape
        inverse = " -> ".join(reversed(LAYOUTS[self.pattern.layout].split(" -> ")))
        return rearrange(x, inverse, t=frames, h=height, w=width)

    def key_valid(self, frame_valid: Bool[Array, "B T"] | None) -> Bool[Array, "N S"] | None:
        """Validity of every key of the sequences."""
        how = {"frames": "b t -> (b t) n", "positions": "b t -> (b n) t", "all": "b t -> b (t n)"}
        return None if frame_valid is None else repeat(frame_valid, how[self.pattern.layout], n=self.tokens)

    def block_mask(self, run: int | None = None) -> AnyMask:
        """Visibility among the rows of a sequence; `run` > N leaves room for padding after each frame's tokens."""
        parts = tuple(self._part(term, table, run) for term, table in self.terms)
        return parts[0] if len(parts) == 1 else SumMask(parts)

    def _part(self, term: Pattern, table: np.ndarray, run: int | None) -> BlockMask:
        """`block_mask` by one product."""
        layout, frames = self.pattern.layout, self.shape[0]
        if layout == "positions":
            return BlockMask((frames, frames), (1, 1), 1, table.tobytes(), self._rule(term, table))
        run = self.tokens if run is None else run
        within = None if term.covers_frame(self.shape[1:]) else term
        if layout == "frames":
            return BlockMask((1, 1), (run, run), self.tokens, b"\1", FrameRule(None), within, self.shape[1:])
        return BlockMask((frames, frames), (run, run), self.tokens, table.tobytes(), self._rule(term, table), within,
                         self.shape[1:])

    def _rule(self, term: Pattern, table: np.ndarray) -> FrameRule | None:
        """The formula of a frame table, where there is one: a frame that pattern and mask leave alone is in none."""
        if self.images is None:
            return None
        frames, clip = self.shape[0], self.shape[0] - self.images if self.images else None
        rule, index = FrameRule(term, clip, clip is None or bool(table[-1, -1])), np.arange(frames)
        same = np.array_equal(rule(index[:, None], index[None, :]), table)
        return rule if same else None

    def extra_rows(self, extra: ExtraKeys) -> tuple[Array, Array, Array | None, BlockMask]:
        """Outside keys, values `[B*, E, K, D]` and mask `[B*, E]` of the sequences, and who sees them."""
        frames, layout = self.shape[0], self.pattern.layout
        groups, count = extra.k.shape[1:3]
        if layout == "frames":
            how, sizes, block_mask = "b g m ... -> (b g r) m ...", {"r": frames // groups}, (1, 1, self.tokens)
        else:
            copies = self.tokens if layout == "positions" else 1
            how, sizes = "b g m ... -> (b r) (g m) ...", {"r": copies}
            block_mask = (frames, groups, 1 if layout == "positions" else self.tokens)
        q_frames, k_frames, run = block_mask
        table = np.eye(frames, dtype=bool) if k_frames > 1 else np.ones((q_frames, 1), bool)
        rule = FrameRule(None) if k_frames > 1 else FrameRule(Full())
        rows = [None if a is None else repeat(a, how, **sizes) for a in extra]
        return *rows, BlockMask((q_frames, k_frames), (run, count), count, table.tobytes(), rule)


def _spans(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last row of every block."""
    first = np.arange(0, length, block)
    return first, np.minimum(first + block, length) - 1
