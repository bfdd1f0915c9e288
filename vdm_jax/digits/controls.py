"""Control maps of clips of digits, drawn from the strokes and paths of a clip.

| kind | the map of each frame |
|---|---|
| `edges` | the edges of the clip (Canny's, by OpenCV) |
| `track` | the square of each digit, filled: where it is, and nothing of how it looks |
| `strokes` | the step of the middle of each square to the next frame (`video/strokes.py`), in a disc around it |
| `height` | how far inside a stroke of a digit a pixel is: 0 outside, white from `HEIGHT` sides of a frame on |
| `reference` | the handwriting alone, white, in the middle of every frame: not where it is, not which colour it has |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.digits.clips import DigitClip
from vdm_jax.digits.drawing import paint
from vdm_jax.errors import require_package
from vdm_jax.video.strokes import Stroke, Strokes

Kind = Literal["edges", "track", "strokes", "height", "reference"]
HEIGHT = 3 / 64  # of a frame's side: half the width of most strokes
RADIUS = 4 / 64  # of a frame's side; of the disc of a step, so that it is there in frames of 16 pixels too
CANNY = 100, 200  # thresholds of edges, those of the published ControlNet
WHITE = (255, 255, 255)


def draw_control(clip: DigitClip, kind: Kind) -> UInt8[np.ndarray, "T H W 3"]:
    """The map of each frame of a clip. Raises `UserError` where a package that the kind needs is not installed."""
    return DRAW[kind](clip)


def middles(clip: DigitClip) -> Float[np.ndarray, "N T 2"]:
    """The middle (y, x) of each digit's square in each frame, pixels, where the middle of the first pixel is 0."""
    return np.stack([track + (len(stamp) - 1) / 2 for stamp, track in zip(clip.stamps, clip.tracks, strict=True)])


def edges(video: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """The edges of each frame, by Canny's method. Raises `UserError` where OpenCV is not installed."""
    require_package("edges", "cv2", "metrics")
    import cv2

    grey = video.astype(np.float32).max(-1).astype(np.uint8)  # the brightest channel: blue digits have edges too
    return np.stack([np.repeat(cv2.Canny(frame, *CANNY)[..., None], 3, axis=-1) for frame in grey])


def _track(clip: DigitClip) -> UInt8[np.ndarray, "T H W 3"]:
    found = np.zeros_like(clip.video)
    for stamp, track in zip(clip.stamps, clip.tracks, strict=True):
        paint(found, np.ones_like(stamp), track, WHITE)
    return found


def _strokes(clip: DigitClip) -> UInt8[np.ndarray, "T H W 3"]:
    frames, height, width = clip.video.shape[:3]
    paths = tuple(Stroke(0, path[:, ::-1]) for path in middles(clip))  # (x, y)
    return np.stack(list(Strokes(frames, height, width, paths).pictures(height, width, radius=RADIUS)))


def _height(clip: DigitClip) -> UInt8[np.ndarray, "T H W 3"]:
    require_package("height maps", "scipy", "metrics")
    from scipy.ndimage import distance_transform_edt

    found, most = np.zeros_like(clip.video), HEIGHT * clip.video.shape[1]
    for stamp, track in zip(clip.stamps, clip.tracks, strict=True):
        inside = distance_transform_edt(np.pad(stamp, 1) > 0.5)[1:-1, 1:-1]
        paint(found, np.clip(inside / most, 0, 1).astype(np.float32), track, WHITE)
    return found


def _reference(clip: DigitClip) -> UInt8[np.ndarray, "T H W 3"]:
    found, size = np.zeros_like(clip.video), clip.video.shape[1]
    for number, stamp in enumerate(clip.stamps):  # side by side where there are two
        free = np.array([size - len(stamp), size / len(clip.stamps) - len(stamp)])
        place = free / 2 + (0, number * size / len(clip.stamps))
        paint(found, stamp, np.tile(np.maximum(place, 0), (len(found), 1)), WHITE)
    return found


DRAW: dict[Kind, Callable[[DigitClip], UInt8[np.ndarray, "T H W 3"]]] = {
    "edges": lambda clip: edges(clip.video), "track": _track, "strokes": _strokes, "height": _height,
    "reference": _reference}
