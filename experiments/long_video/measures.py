"""What is measured of long videos of digits, block by block: colour asked for at that time, seams, and one handwriting.

Only pixels and the script are read: no network. Real stories score 1 by construction (`tests/experiments/`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.digits.clips import parse_caption
from vdm_jax.digits.drawing import COLOURS


def colours(video: UInt8[np.ndarray, "N H W 3"]) -> list[str]:
    """The colour of each frame: of `COLOURS` the one whose direction is nearest to that of the brightest pixels."""
    names, table = list(COLOURS), np.array(list(COLOURS.values()), float)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    pixels = video.reshape(len(video), -1, 3).astype(float)
    bright = np.argsort(pixels.sum(-1), axis=1)[:, -8:]
    mean = np.take_along_axis(pixels, bright[..., None], axis=1).mean(1)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
    return [names[i] for i in (mean @ table.T).argmax(1)]


def script_followed(
    video: UInt8[np.ndarray, "N H W 3"], captions: Sequence[str], block: int
) -> Float[np.ndarray, " blocks"]:
    """Share of the frames of each block whose colour is that of the caption of their time (one digit)."""
    asked = [parse_caption(caption)[0].colour for caption in captions]
    right = np.array([a == b for a, b in zip(colours(video), asked, strict=True)], float)
    return right[: len(right) // block * block].reshape(-1, block).mean(1)


def seam_ratio(video: UInt8[np.ndarray, "N H W 3"], seams: Sequence[int]) -> float:
    """How much changes from the frame before each seam to the next, over how much changes elsewhere."""
    change = np.abs(np.diff(video.astype(np.float32), axis=0)).mean((1, 2, 3))
    inside = np.delete(change, list(seams))
    return float(change[list(seams)].mean() / max(inside.mean(), 1e-6))


def ink(video: UInt8[np.ndarray, "N H W 3"], block: int) -> Float[np.ndarray, " blocks"]:
    """Spread of how much is drawn, over its mean, in each block: the same digit in one handwriting has the same ink in
    every frame, whatever its colour and place."""
    drawn = (video.max(-1) / np.maximum(video.max((1, 2, 3), keepdims=True)[..., 0], 1)).sum((1, 2))
    blocks = drawn[: len(drawn) // block * block].reshape(-1, block)
    return blocks.std(1) / np.maximum(blocks.mean(1), 1e-6)
