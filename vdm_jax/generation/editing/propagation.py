"""Frames between two edited key frames, of what optical flow and patches find of them there.

Rerender-A-Video (Yang et al. 2023, arXiv 2306.07954, section 4.3) leaves these to EbSynth (Jamriska et al. 2019), a
program of its own. This is a patch-based propagation of our own in its place: every pixel of a frame gets a
displacement into the key frame, among those that flow and its neighbours propose the one whose patch of colours and
edges differs least (after PatchMatch: Barnes et al. 2009), and patches of the edited key frame are averaged where they
overlap.
What the two key frames make of a frame is blended by how near they are in time and how well the patches fit, and keeps
mean and contrast of each colour. Its gradients may be those of the better one (`poisson.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.generation.editing.poisson import blended_gradients
from vdm_jax.metrics.flow import opencv, warped
from vdm_jax.metrics.flow_estimators import BY_DIS, FlowEstimator

PATCH = 5  # pixels: side of the patches that are compared
OVERLAP = 3  # pixels: side of the window of patches that are averaged
EDGES = 0.5  # weight of differences of edges against those of colours, both in [0, 1]
POSITION = 1e-4  # cost of a displacement that is a pixel off the one that flow gives, squared
FIT = 0.02  # cost at which the weight of a key frame falls by e
LEAST = 1e-3  # weight of a key frame whose patches fit nowhere, against 1
REACHES = (8, 2, 1)  # pixels: how far off neighbours are whose displacements a pixel tries, in this order


class Found(NamedTuple):
    """A frame as patches of an edited key frame."""

    picture: Float[np.ndarray, "H W 3"]  # in [0, 255]
    cost: Float[np.ndarray, "H W"]  # mean squared difference of the patches of guides


def between(
    sources: UInt8[np.ndarray, "T H W 3"], first: UInt8[np.ndarray, "H W 3"], last: UInt8[np.ndarray, "H W 3"],
    poisson: bool = False, flows: FlowEstimator = BY_DIS,
) -> UInt8[np.ndarray, "N H W 3"]:
    """The edited frames between two key frames, the first and the last of the given ones: two fewer than these;
    `poisson` as of `mixed`."""
    count = len(sources) - 1
    both = [flows.both(one, other) for one, other in itertools.pairwise(sources)]
    steps, back = ([pair[place] for pair in both] for place in (0, 1))
    made = []
    for place in range(1, count):
        to_first, to_last = (chained(path) for path in (back[:place][::-1], steps[place:]))
        sides = [propagated(sources[place], sources[key], edited, along, flows)
                 for key, edited, along in ((0, first, to_first), (count, last, to_last))]
        made.append(mixed(*sides, place / count, poisson))
    return np.stack(made) if made else np.zeros((0, *sources.shape[1:]), np.uint8)


def chained(path: list[Float[np.ndarray, "H W 2"]]) -> Float[np.ndarray, "H W 2"]:
    """The displacement along several of them, one after another."""
    total = path[0]
    for further in path[1:]:
        total = total + warped(further, total)
    return total


def propagated(
    frame: UInt8[np.ndarray, "H W 3"], key: UInt8[np.ndarray, "H W 3"], edited: UInt8[np.ndarray, "H W 3"],
    along: Float[np.ndarray, "H W 2"], flows: FlowEstimator = BY_DIS,
) -> Found:
    """A frame as patches of an edited key frame; `along` is where flow from frame to frame finds it there."""
    guide, there = guides(frame), guides(key)
    field, cost = along, costs(guide, there, along)
    field, cost, expected = _better((field, cost, along), guide, there, *(flows.flow(frame, key),) * 2)
    for proposal in _proposals(field.shape[:2]):
        field, cost, expected = _better((field, cost, expected), guide, there, proposal(field), expected)
    return Found(averaged(edited, field), cost)


def guides(frame: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 4"]:
    """Colours in [0, 1] and the strength of edges, by which patches are compared."""
    cv2 = opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    edges = np.hypot(*(cv2.Sobel(grey, cv2.CV_32F, *order, scale=1 / 4) for order in ((1, 0), (0, 1))))
    return np.dstack([frame.astype(np.float32) / 255, EDGES * edges])


def costs(
    guide: Float[np.ndarray, "H W 4"], there: Float[np.ndarray, "H W 4"], field: Float[np.ndarray, "H W 2"]
) -> Float[np.ndarray, "H W"]:
    """Mean squared difference of the patch around each pixel and the one at its displacement."""
    cv2 = opencv()
    return cv2.boxFilter(((guide - warped(there, field)) ** 2).mean(-1), -1, (PATCH, PATCH))


def averaged(
    edited: UInt8[np.ndarray, "H W 3"], field: Float[np.ndarray, "H W 2"]
) -> Float[np.ndarray, "H W 3"]:
    """Each pixel as the mean of what the patches around it have there."""
    reach = range(-(OVERLAP // 2), OVERLAP // 2 + 1)
    return np.mean([warped(edited, shifted(field, row, column)) for row in reach for column in reach], axis=0)


def shifted(field: Float[np.ndarray, "H W 2"], rows: int, columns: int) -> Float[np.ndarray, "H W 2"]:
    """The displacement of the pixel so many rows and columns further, or of the one at the border."""
    height, width = field.shape[:2]
    y, x = (np.clip(np.arange(size) + by, 0, size - 1) for size, by in ((height, rows), (width, columns)))
    return field[y][:, x]


def mixed(one: Found, other: Found, time: float, poisson: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """What two key frames make of a frame, at a share of the time from one to the other; with `poisson` its gradients
    are those of the one that counts more at each pixel."""
    weights = [share * (np.exp(-found.cost / FIT) + LEAST) for found, share in ((one, 1 - time), (other, time))]
    shares = [weight / sum(weights) for weight in weights]
    picture = sum(share[..., None] * found.picture for share, found in zip(shares, (one, other), strict=True))
    parts = [share.mean() for share in shares]
    mean, std = (parts[0] * function(one.picture, axis=(0, 1)) + parts[1] * function(other.picture, axis=(0, 1))
                 for function in (np.mean, np.std))
    own, own_std = picture.mean((0, 1)), picture.std((0, 1))
    picture = (picture - own) * np.where(own_std > 0, std / np.maximum(own_std, 1e-6), 1) + mean
    if poisson:
        picture = blended_gradients(np.clip(picture, 0, 255), one.picture, other.picture, shares[0] >= shares[1])
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _proposals(shape: tuple[int, int]) -> Iterator[Any]:
    """Functions from displacements to others, of neighbours ever nearer and then of half a pixel to all sides."""
    for reach in REACHES:
        if reach < min(shape):
            for rows, columns in ((0, reach), (0, -reach), (reach, 0), (-reach, 0)):
                yield lambda field, rows=rows, columns=columns: shifted(field, rows, columns)
    for x, y in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)):
        yield lambda field, by=(x, y): field + np.array(by, np.float32)


def _better(
    now: tuple[np.ndarray, np.ndarray, np.ndarray], guide: np.ndarray, there: np.ndarray, field: np.ndarray,
    expected: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Displacements, their costs and where flow expected them, of each pixel the better ones of those now and new ones.
    """
    cost = costs(guide, there, field) + POSITION * ((field - expected) ** 2).sum(-1)
    wins = cost < now[1]
    chosen = [np.where(wins[..., None], new, old) for new, old in ((field, now[0]), (expected, now[2]))]
    return chosen[0], np.where(wins, cost, now[1]), chosen[1]
