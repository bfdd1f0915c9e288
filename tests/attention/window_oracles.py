"""Dense masks written from the papers' definitions, one pair of places at a time, for patterns that know the shape."""

from __future__ import annotations

import math

import numpy as np

from vdm_jax.attention import Neighbourhood, Radial, SlidingTiles
from vdm_jax.attention.products import Pattern

SHAPE = (8, 4, 4)  # windows and tiles below fit it
MEMBERS: tuple[Pattern, ...] = (
    Neighbourhood(frames=3, height=3, width=3),
    Neighbourhood(frames=4, height=3, width=2, stride=(2, 3, 1), dilation=(2, 1, 2)),
    Neighbourhood(frames=3, height=2, width=4, stride=(3, 1, 2), causal=True),
    SlidingTiles(tile=(2, 2, 2), window=(3, 1, 3)),
    SlidingTiles(tile=(2, 2, 1), window=(3, 1, 3), order="frames"),
    Radial(), Radial(sink=False),
)


def product(*axes: np.ndarray) -> np.ndarray:
    """Mask over tokens [S, S] from one table per axis, bool [L, L] each."""
    mask = np.ones((1, 1), bool)
    for table in axes:
        mask = np.kron(mask, table)
    return mask


def neighbourhood(length: int, window: int, stride: int, dilation: int, causal: bool) -> np.ndarray:
    """One axis: among the places with the query's remainder, the run of `window` whose middle is nearest to that of
    the query's stride group; a causal one ends at the query and starts `window` before the end of the group."""
    table = np.zeros((length, length), bool)
    for query in range(length):
        lane = list(range(query % dilation, length, dilation))
        place = lane.index(query)
        group = [i for i in range(len(lane)) if i // stride == place // stride]
        if causal:
            last = min(place // stride * stride + stride - 1, len(lane) - 1)
            assert last == group[-1]
            chosen = [i for i in range(len(lane)) if last - window < i <= place]
        else:
            leader = min(place // stride * stride + stride // 2, len(lane) - 1)
            starts = range(len(lane) - window + 1)
            start = min(starts, key=lambda s: abs(s + window // 2 - leader))
            chosen = range(start, start + window)
        table[query, [lane[i] for i in chosen]] = True
    return table


def sliding_tiles(length: int, tile: int, window: int) -> np.ndarray:
    """One axis: the centre of the window is the query's tile, kept half a window away from the borders."""
    count, half = length // tile, window // 2
    table = np.zeros((length, length), bool)
    for query, key in np.ndindex(table.shape):
        centre = min(max(query // tile, half), count - 1 - half)
        table[query, key] = abs(centre - key // tile) <= half
    return table


def radial(shape: tuple[int, int, int], sink: bool) -> np.ndarray:
    """The paper's mask of frames i, j and positions k, l, and the first frame for all."""
    frames, tokens = shape[0], shape[1] * shape[2]
    mask = np.zeros((frames, tokens, frames, tokens), bool)
    for i, k, j, l in np.ndindex(mask.shape):  # noqa: E741
        decay = 2 ** math.floor(math.log2(max(abs(i - j), 1)))
        near = decay <= tokens and abs(k - l) + 1 <= tokens / decay
        thinned = abs(i - j) % math.ceil(decay / tokens) == 0 and k == l
        mask[i, k, j, l] = near or thinned or (sink and j == 0)
    return mask.reshape(frames * tokens, frames * tokens)


def oracle(pattern: Pattern, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Dense mask [S, S]."""
    if isinstance(pattern, Radial):
        return radial(shape, pattern.sink)
    if isinstance(pattern, SlidingTiles):
        return product(*map(sliding_tiles, shape, pattern.tile, pattern.window))
    windows = (pattern.frames, pattern.height, pattern.width)
    return product(*map(neighbourhood, shape, windows, pattern.stride, pattern.dilation,
                        (pattern.causal, False, False)))


def with_images(pattern: Pattern, shape: tuple[int, int, int], images: int) -> np.ndarray:
    """Dense mask [S, S] of a clip and of images after it, which see themselves as a frame of the clip does."""
    tokens = shape[1] * shape[2]
    clip, mask = (shape[0] - images) * tokens, np.zeros((shape[0] * tokens,) * 2, bool)
    mask[:clip, :clip] = oracle(pattern, (shape[0] - images, *shape[1:]))
    for start in range(clip, len(mask), tokens):
        mask[start : start + tokens, start : start + tokens] = mask[:tokens, :tokens]
    return mask
