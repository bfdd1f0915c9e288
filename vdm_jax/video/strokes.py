"""Displacements of pixels as pictures, and strokes: paths along which something should move.

A stroke is cut into one step per frame, and each step is drawn at the place where it begins: a sparse flow and its mask
(MCDiff: Chen et al. 2023, arXiv 2304.14404). In a picture red is the displacement to the right and green the one down,
128 for none and 127 more or less for `limit`; blue is 255 where there is a displacement, and 0 elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vdm_jax.configuration import Count, Size, check_value
from vdm_jax.errors import UserError
from vdm_jax.video.json_files import read_json

LIMIT = 0.125  # largest displacement that a picture holds, as a share of its height
RADIUS = 2 / 64  # of the disc of a step, likewise
_FIELDS, _OF_STROKES = ("width", "height", "frames", "strokes"), ("points", "first", "last")


@dataclasses.dataclass(frozen=True)
class Stroke:
    """Where something is in frame `first` and those after it."""

    first: int
    points: Float[np.ndarray, "N 2"]  # (x, y), pixels, one per frame


@dataclasses.dataclass(frozen=True)
class Strokes:
    """The strokes of a video of a size."""

    frames: int
    height: int
    width: int
    strokes: tuple[Stroke, ...]

    def pictures(
        self, height: int, width: int, *, limit: float = LIMIT, radius: float = RADIUS
    ) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """A picture of the steps of each frame, in another size; the last frame has none."""
        scale = np.array([width / self.width, height / self.height])
        scaled = [Stroke(stroke.first, stroke.points * scale) for stroke in self.strokes]
        for frame in range(self.frames):
            yield encoded(*steps_at(scaled, frame, height, width, radius * height), limit)


def steps_at(strokes: Sequence[Stroke], frame: int, height: int, width: int, radius: float
             ) -> tuple[Float[np.ndarray, "height width 2"], Bool[np.ndarray, "height width"]]:
    """The displacements (x, y), pixels, to the next frame of the strokes that go on in this one, each in a disc around
    the place where it is, and where there are any. Later strokes lie above earlier ones; nothing is cut off but at the
    border."""
    found, mask = np.zeros((height, width, 2), np.float32), np.zeros((height, width), bool)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    for stroke in strokes:
        place = frame - stroke.first
        if 0 <= place < len(stroke.points) - 1:
            x, y = stroke.points[place]
            disc = (columns - x) ** 2 + (rows - y) ** 2 <= max(radius, 0.71) ** 2  # one pixel at the least
            found[disc], mask[disc] = stroke.points[place + 1] - stroke.points[place], True
    return found, mask


def encoded(
    displacements: Float[np.ndarray, "*rest H W 2"], mask: Bool[np.ndarray, "*rest H W"], limit: float = LIMIT
) -> UInt8[np.ndarray, "*rest H W 3"]:
    """Displacements, pixels, as a picture; those beyond `limit`, a share of the height, are cut there."""
    share = displacements / (limit * displacements.shape[-3])
    levels = 128 + np.rint(127 * np.clip(np.where(mask[..., None], share, 0), -1, 1))
    return np.concatenate([levels, np.where(mask, 255, 0)[..., None]], axis=-1).astype(np.uint8)


def decoded(
    pictures: UInt8[np.ndarray, "*rest H W 3"], limit: float = LIMIT
) -> tuple[Float[np.ndarray, "*rest H W 2"], Bool[np.ndarray, "*rest H W"]]:
    """Displacements, pixels, and mask of such pictures."""
    share = (pictures[..., :2].astype(np.float32) - 128) / 127
    return share * np.float32(limit * pictures.shape[-3]), pictures[..., 2] > 127


def mirrored(pictures: UInt8[np.ndarray, "*rest H W 3"]) -> UInt8[np.ndarray, "*rest H W 3"]:
    """Pictures of displacements of a mirrored video: what went to the right goes to the left."""
    found = pictures[..., ::-1, :].copy()
    found[..., 0] = 256 - np.maximum(found[..., 0].astype(np.int32), 1)
    return found


def cut_evenly(points: Float[np.ndarray, "N 2"], steps: int) -> Float[np.ndarray, "M 2"]:
    """A path of straight lines as steps + 1 points at equal distances along it."""
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], steps + 1)
    return np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], axis=1)


def read_strokes(path: Path) -> Strokes:
    """Strokes drawn by hand, a JSON file:

        {"width": 64, "height": 64, "frames": 16,
         "strokes": [{"points": [[10, 32], [50, 32]], "first": 0, "last": 15}]}

    `points` are (x, y) in pixels, within the picture; the path through them is gone at one speed from frame `first` (0
    by default) to `last` (the last one by default). Raises `UserError` naming the file and what in it does not fit.
    """
    try:
        data = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})", "strokes") from error
    _check_keys(path, data, _FIELDS, _FIELDS)
    try:
        check_value((data["height"], data["width"]), tuple[Size, Size], "height and width")
        check_value(data["frames"], Count, "frames")
    except UserError as error:
        raise UserError(f"{path}: {error}", "strokes") from error
    if not isinstance(data["strokes"], list):
        raise UserError(f"{path}: strokes={data['strokes']!r}; permitted: a list", "strokes")
    sides = data["width"], data["height"]
    strokes = tuple(_stroke(path, place, entry, data["frames"], sides) for place, entry in enumerate(data["strokes"]))
    return Strokes(data["frames"], data["height"], data["width"], strokes)


def _stroke(path: Path, place: int, entry: Any, frames: int, sides: tuple[int, int]) -> Stroke:
    _check_keys(path, entry, _OF_STROKES, ("points",))
    first, last = entry.get("first", 0), entry.get("last", frames - 1)
    if type(first) is not int or type(last) is not int or not 0 <= first < last < frames:
        raise UserError(f"{path}: strokes[{place}] from frame {first} to {last}; permitted: 0 <= first < last < "
                        f"{frames}", "strokes")
    try:
        points = np.array(entry["points"], np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.abs(points).max() < 2**16:
        raise UserError(f"{path}: strokes[{place}] has points that are not two or more [x, y]; permitted: pixels",
                        "strokes")
    outside = ((points < 0) | (points > sides)).any(axis=1)
    if outside.any():
        raise UserError(f"{path}: strokes[{place}] has the point {points[outside][0].tolist()} outside of the picture; "
                        f"permitted: x in [0, {sides[0]}] and y in [0, {sides[1]}]", "strokes")
    return Stroke(first, cut_evenly(points, last - first))


def _check_keys(path: Path, data: Any, known: Sequence[str], needed: Sequence[str]) -> None:
    if not isinstance(data, dict) or not set(needed) <= set(data) <= set(known):
        given = ", ".join(data) or "no keys" if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{path}: {given}; permitted: an object with {', '.join(needed)}"
                        + (f", and {', '.join(k for k in known if k not in needed)}" if needed != known else ""),
                        "strokes")
