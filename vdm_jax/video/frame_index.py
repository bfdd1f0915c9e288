"""Which frames a video file really holds, when each is shown, and from where each can be decoded.

Headers lie about frame counts and rates, and an average rate cannot place the frames of a variable-rate file. So the
index is made from the presentation timestamps (pts) of the packets, which needs no decoding. Three things make packets
an unreliable witness: missing or repeated timestamps, containers that store no reordering (AVI with B-frames), and
packets that decode to nothing (hidden or damaged frames). Each is detected, the last by decoding the last group of
pictures and comparing, and then the whole file is decoded once and the frames themselves are indexed.
"""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.container import InputContainer

# Codecs whose packets need not give one frame each (hidden reference frames).
_PACKETS_ARE_NOT_FRAMES = ("vp8",)
# Codecs whose every packet claims to be a keyframe although later pictures are painted over earlier ones.
_ONLY_FIRST_IS_KEY = ("gif", "apng")


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """The frames of one file in the order they are shown.

    Attributes:
      pts: int64 [frames], presentation times in units of `time_base`, strictly increasing.
      keyframes: int64 [keys], numbers of the frames where decoding can start; the first is 0.
      time_base: seconds per unit of `pts`.
      timestamped: False where the file has no usable timestamps: frames are then told apart by counting them from the
        start, and `pts` are made up from the nominal rate.
    """

    pts: np.ndarray
    keyframes: np.ndarray
    time_base: Fraction
    timestamped: bool = True

    def __len__(self) -> int:
        return len(self.pts)

    @classmethod
    def counted(cls, frames: int, rate: Fraction = Fraction(1)) -> FrameIndex:
        """The index of a file that has `frames` frames and is only ever decoded from its start."""
        return cls(np.arange(frames, dtype=np.int64), np.zeros(1, np.int64), 1 / rate, timestamped=False)

    @property
    def duration(self) -> float:
        """Seconds the video lasts; the last frame is given the median time of the others (1 unit if alone)."""
        last = np.median(np.diff(self.pts)) if len(self.pts) > 1 else 1
        return float((self.pts[-1] - self.pts[0] + last) * self.time_base)

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        return len(self.pts) / self.duration

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """Numbers of the frames on screen at these times after the first frame (clamped to the video)."""
        # Stored times are rounded to the time base (Matroska: milliseconds). With a unit of slack, but never more than
        # a quarter of a frame, the time k / fps finds frame k all the same.
        unit = float(self.time_base)
        slack = min(1.0, 0.25 * self.duration / unit / len(self.pts)) * unit
        offsets = (self.pts - self.pts[0]) * unit
        found = np.searchsorted(offsets, np.asarray(seconds) + slack, side="right") - 1
        return np.clip(found, 0, len(self.pts) - 1)

    def to_json(self) -> dict:
        """JSON data; constant frame steps are stored as runs, so a constant-rate file takes a few numbers."""
        runs = [[int(step), len(list(group))] for step, group in itertools.groupby(np.diff(self.pts).tolist())]
        return {
            "first": int(self.pts[0]),
            "steps": runs,
            "keyframes": self.keyframes.tolist(),
            "time_base": [self.time_base.numerator, self.time_base.denominator],
            "timestamped": self.timestamped,
        }

    @classmethod
    def from_json(cls, data: dict) -> FrameIndex:
        """The inverse of `to_json`; KeyError, TypeError or ValueError on data of another form."""
        steps = [np.full(count, step, np.int64) for step, count in data["steps"]]
        pts = np.cumsum(np.concatenate([np.array([data["first"]], np.int64), *steps]))
        keyframes = np.asarray(data["keyframes"], np.int64)
        return cls(pts, keyframes, Fraction(*data["time_base"]), bool(data["timestamped"]))


def build_index(container: InputContainer, reopen) -> FrameIndex | None:
    """Indexes the first video stream of a freshly opened container; None when it holds no frame that decodes.

    `reopen()` gives a fresh container of the same file: the index is checked, and where needed made, by decoding.
    """
    index = _from_packets(container)
    if index is not None and _tail_decodes(reopen(), index):
        return index
    return _from_frames(reopen())


def _from_packets(container: InputContainer) -> FrameIndex | None:
    """The index by demuxing alone, or None when timestamps or codec make packets unreliable."""
    stream = container.streams.video[0]
    codec = stream.codec_context
    packets = [p for p in container.demux(stream) if p.size and not p.is_discard and not p.is_corrupt]
    pts = [p.pts for p in packets]
    if not packets or None in pts or codec.name in _PACKETS_ARE_NOT_FRAMES:
        return None
    stored = np.array(pts, np.int64)
    steps = np.diff(stored)
    never_reordered = len(stored) > 1 and bool(np.all(steps > 0))
    if codec.has_b_frames and never_reordered:  # the container dropped the display order
        return None
    order = np.argsort(stored, kind="stable")
    shown = stored[order]
    if np.any(np.diff(shown) <= 0):
        return None
    is_key = np.array([p.is_keyframe for p in packets])[order]
    if codec.name in _ONLY_FIRST_IS_KEY:
        is_key[1:] = False
    is_key[0] = True
    return FrameIndex(shown, np.flatnonzero(is_key), stream.time_base)


def _tail_decodes(container: InputContainer, index: FrameIndex) -> bool:
    """Whether the frames from the last keyframe on decode to exactly the times the packets promise."""
    import av

    stream = container.streams.video[0]
    start = index.pts[index.keyframes[-1]]
    try:
        container.seek(int(start), stream=stream)
        decoded = [frame.pts for frame in container.decode(stream)]
    except av.FFmpegError:
        return False
    shown = [pts for pts in decoded if pts is not None and pts >= start]
    return len(decoded) > 0 and shown == index.pts[index.keyframes[-1] :].tolist()


def _from_frames(container: InputContainer) -> FrameIndex | None:
    """The index by decoding the file; what follows the first undecodable packet is left out."""
    import av

    stream = container.streams.video[0]
    pts, keyframes = [], []
    try:
        for frame in container.decode(stream):
            if frame.key_frame:
                keyframes.append(len(pts))
            pts.append(frame.pts)
    except av.FFmpegError:
        pass
    if not pts:
        return None
    if None not in pts and np.all(np.diff(pts) > 0):
        if stream.codec_context.name in _ONLY_FIRST_IS_KEY:
            keyframes = []
        keys = np.unique(np.array([0, *keyframes], np.int64))
        return FrameIndex(np.array(pts, np.int64), keys, stream.time_base)
    return FrameIndex.counted(len(pts), Fraction(stream.average_rate or stream.guessed_rate or 25))
