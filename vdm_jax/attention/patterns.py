"""Attention patterns: which token sees which, as one value-hashed object each.

Tokens of a video are laid out `[T, N]`: frame first, position inside the frame second; flattened they are
numbered `frame * N + position`. A pattern says two things: the *layout* in which it is computed, and the mask
inside that layout. Spatial and temporal attention are pure layouts (a reshape, never a mask): masking them out of
full attention would do the work of full attention.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spatial:
    """Each token sees all tokens of its own frame (frames are batch)."""

    layout = "frames"

    def visible(self, frames: int, tokens: int) -> np.ndarray:
        """Dense mask `[S, S]`, True where query (row) sees key (column): the oracle of the tests."""
        frame = np.arange(frames * tokens) // tokens
        return frame[:, None] == frame[None, :]

    def pairs(self, frames: int, tokens: int) -> int:
        """Number of visible (query, key) pairs."""
        return frames * tokens**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temporal:
    """Each token sees the same position in all frames (positions are batch)."""

    layout = "positions"

    def visible(self, frames: int, tokens: int) -> np.ndarray:
        """Dense mask `[S, S]`, True where query (row) sees key (column)."""
        position = np.arange(frames * tokens) % tokens
        return position[:, None] == position[None, :]

    def pairs(self, frames: int, tokens: int) -> int:
        """Number of visible (query, key) pairs."""
        return tokens * frames**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full:
    """Full spatio-temporal attention: every token sees every token of every frame."""

    layout = "all"

    def visible(self, frames: int, tokens: int) -> np.ndarray:
        """Dense mask `[S, S]`, True everywhere."""
        return np.ones((frames * tokens,) * 2, bool)

    def pairs(self, frames: int, tokens: int) -> int:
        """Number of visible (query, key) pairs."""
        return (frames * tokens) ** 2


AttentionPattern = Spatial | Temporal | Full


def attention_flops(pattern: AttentionPattern, frames: int, tokens: int, heads: int, head_dim: int) -> int:
    """Exact multiply-add FLOPs (2 per multiply-add) of one clip's forward pass: scores and weighted sum."""
    return 4 * pattern.pairs(frames, tokens) * heads * head_dim


def independent_frames_mask(frames: int, images: int) -> np.ndarray:
    """Frame mask `[T+n, T+n]` for joint image-video training (Ho et al. 2022, arXiv 2204.03458, section 3).

    The first `frames` frames are a clip and see each other; each of the `images` appended ones sees only itself.
    """
    index = np.arange(frames + images)
    clip = index < frames
    return (clip[:, None] & clip[None, :]) | (index[:, None] == index[None, :])
