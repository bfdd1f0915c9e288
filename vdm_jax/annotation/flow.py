"""Optical flow (DIS, by OpenCV) as pictures of displacements (`video/strokes.py`), and strokes: those drawn by hand, or
paths of points along the flow."""

from __future__ import annotations

import collections
import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vdm_jax.annotation.frames import check_count, frames_of, place_of
from vdm_jax.configuration import Count, Seed, Share, ShareAboveZero, Size, config
from vdm_jax.errors import UserError
from vdm_jax.metrics.flow import LEAST_SIDE, flow, require_opencv, visible
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.strokes import LIMIT, RADIUS, Stroke, encoded, read_strokes, steps_at

Motion = tuple[Float[np.ndarray, "H W 2"], Bool[np.ndarray, "H W"]]  # displacements, pixels, and where they hold


@config
class Flow:
    """Where each pixel is some frames later; the last frames of a video have no displacement."""

    stride: Size = 1  # frames from one to the other: that of the clips (`VideoFolder.frame_stride`)
    limit: ShareAboveZero = LIMIT  # largest displacement, as a share of the height of a frame

    def check(self) -> None:
        """Raise `UserError` where OpenCV is not installed."""
        require_opencv()

    def frames(self, video: VideoReader, name: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The displacements of each frame where they are found again on the way back."""
        for displacements, mask in _motions(video, self.stride, both_ways=True):
            yield encoded(displacements, mask, self.limit)


@config
class StrokesOfVideos:
    """The paths of some points, drawn by hand or, without a folder of those, along the optical flow."""

    strokes: str | None = None  # folder with a JSON file for each video (`video/strokes.py: read_strokes`)
    count: Count = 8  # points at a time that are followed along the flow; more of them where more moves
    span: Size = 16  # frames for which they are followed
    seed: Seed = 0  # of the points
    radius: Share = RADIUS  # of the disc of a step, as a share of the height of a frame
    limit: ShareAboveZero = LIMIT  # largest displacement, likewise

    def check(self) -> None:
        """Raise `UserError` where the flow is needed and OpenCV is not installed."""
        if self.strokes is None:
            require_opencv()

    def frames(self, video: VideoReader, name: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The step of each stroke in each frame."""
        if self.strokes is not None:
            height, width = video.frames([0]).shape[1:3]
            place = place_of(self.strokes, name, suffixes=(".json",))
            drawn = read_strokes(place)
            check_count(place, "frames", drawn.frames, len(video))
            yield from drawn.pictures(height, width, limit=self.limit, radius=self.radius)
            return
        digest = hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()
        yield from self._followed(video, np.random.default_rng(int.from_bytes(digest[:8], "big")))

    def _followed(self, video: VideoReader, rng: np.random.Generator) -> Iterator[np.ndarray]:
        for some in _groups(_motions(video, 1, both_ways=False), self.span):
            height, width = some[0][0].shape[:2]
            motions = [motion for motion, mask in some if mask.any()]  # the last frame of a video has none
            points = moving_points(motions[0], self.count, rng) if motions else ()
            strokes = [follow(point, motions) for point in points]
            for frame in range(len(some)):
                yield encoded(*steps_at(strokes, frame, height, width, self.radius * height), self.limit)


def follow(point: Float[np.ndarray, " 2"], motions: list[Float[np.ndarray, "H W 2"]]) -> Stroke:
    """The path of a point (x, y) along displacements, as long as it stays within the frame."""
    height, width = motions[0].shape[:2]
    points = [np.asarray(point, np.float64)]
    for motion in motions:
        column, row = np.rint(points[-1]).astype(int)
        if not (0 <= column < width and 0 <= row < height):
            break
        points.append(points[-1] + motion[row, column])
    return Stroke(0, np.stack(points))


def moving_points(motion: Float[np.ndarray, "H W 2"], count: int, rng: np.random.Generator
                  ) -> Float[np.ndarray, "N 2"]:
    """Different pixels (x, y), drawn in proportion to how far they go; fewer where fewer move."""
    lengths = np.linalg.norm(motion, axis=-1).astype(np.float64).reshape(-1)
    count = min(count, int((lengths > 0).sum()))
    if not count:
        return np.zeros((0, 2))
    rows, columns = np.unravel_index(
        rng.choice(len(lengths), count, replace=False, p=lengths / lengths.sum()), motion.shape[:2])
    return np.stack([columns, rows], axis=1).astype(np.float64)


def _motions(video: VideoReader, stride: int, both_ways: bool) -> Iterator[Motion]:
    """The displacements of each frame to the one `stride` later."""
    height, width = video.frames([0]).shape[1:3]
    if min(height, width) < LEAST_SIDE:
        raise UserError(f"optical flow of frames of {height}x{width}; permitted: sides from {LEAST_SIDE} pixels",
                        "annotation.flow")
    window: collections.deque[np.ndarray] = collections.deque(maxlen=stride + 1)
    for frame in frames_of(video):
        window.append(frame)
        if len(window) == stride + 1:
            forward = flow(window[0], window[-1])
            seen = visible(forward, flow(window[-1], window[0])) if both_ways else np.ones((height, width), bool)
            yield forward, seen
    for _ in range(min(stride, len(video))):
        yield np.zeros((height, width, 2), np.float32), np.zeros((height, width), bool)


def _groups(items: Iterator[Motion], size: int) -> Iterator[list[Motion]]:
    while some := list(itertools.islice(items, size)):
        yield some
