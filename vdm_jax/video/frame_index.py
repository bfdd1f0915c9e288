"""Which frames a video file really holds, when each is shown, and from where each can be decoded.

Headers lie about frame counts and rates, and an average rate cannot place the frames of a variable-rate file. So the
index is made from the file itself, in one of two ways.

From packets, which needs no decoding: only for containers that store the presentation time (pts) of every packet and
for codecs whose keyframes are known to reset all state of the decoder. Decoding from such a keyframe gives the frames
that decoding from the start gives.

From frames, for all other files, and where the packets prove unreliable: repeated or missing times, parameters that
change on the way, edits that cut inside the file, or a last group of pictures that does not decode to what its packets
promise. The file is decoded once, and its frames are counted from the start ever after. That is exact for packed
B-frames (DivX AVI), times that a demuxer makes up (MPEG program and transport streams), palettes and bare streams.
"""

from __future__ import annotations

import dataclasses
import itertools
from array import array
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.video.containers import Media, bounded, readable_errors

_TIMED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Types of network abstraction units at which decoding can start: IDR; and for HEVC also BLA and CRA, whose leading
# pictures are shown before them and so belong to the keyframe before (ITU-T H.264 table 7-1, H.265 table 7-1).
_H264_STARTS = (5,)
_HEVC_STARTS = tuple(range(16, 22))
_STARTS = {"h264": _H264_STARTS, "hevc": _HEVC_STARTS}
_RESET_AT_KEYFRAMES = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores",
                       "dnxhd", "ffv1")
_SIDE_DATA_OF_CHANGES = ("new_extradata", "param_change", "palette")


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """The frames of one file in the order they are shown.

    Attributes:
      pts: int64 [frames], presentation times in units of `time_base`, strictly increasing.
      keyframes: int64 [keys], numbers of the frames from which decoding gives the same frames as from the start; the
        first is 0.
      time_base: seconds per unit of `pts`.
      timestamped: False where a seek cannot be shown to be exact: frames are then distinguished by counting them from
      the
        start. `pts` are made up from the nominal rate where the file has none that are usable.
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

    def seconds(self, numbers: np.ndarray) -> np.ndarray:
        """When these frames begin, after the first one."""
        return (self.pts[numbers] - self.pts[0]) * float(self.time_base)

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


def build_index(media: Media, reopen) -> FrameIndex | None:
    """Indexes the video stream of freshly opened media; None when it holds no frame that decodes.

    `reopen()` gives fresh media of the same file: the index is checked, and where needed made, by decoding.

    Raises:
      UserError: more than `containers.MAX_FRAMES` frames.
    """
    index = _from_packets(media) if _seeks_exactly(media) else None
    if index is not None and _tail_decodes(reopen(), index):
        return index
    return _from_frames(reopen())


def frames_from(media: Media, pts: int) -> Iterator:
    """Decodes from the keyframe at `pts`, or from one before it where the container seeks to that.

    Gives nothing if the seek lands elsewhere: behind `pts`, or where decoding cannot start. Frames shown before the
    keyframe landed on are left out, since they may need pictures before it.
    """
    import av

    stream = media.video_stream()
    try:
        media.container.seek(pts, stream=stream)
    except av.FFmpegError:  # the file cannot seek
        return
    landed = None
    for packet in media.container.demux(stream):
        if landed is None and packet.size:
            if packet.pts is None or packet.pts > pts or not _starts_decoding(packet, stream.codec_context):
                return
            landed = packet.pts
        for frame in packet.decode():
            if frame.pts is not None and frame.pts >= landed:
                yield frame


def _seeks_exactly(media: Media) -> bool:
    name = media.video_stream().codec_context.name
    # A decoder library has its own name: libdav1d, libvpx-vp9.
    canonical = media.video_stream().codec_context.codec.canonical_name
    return media.container.format.name in _TIMED_CONTAINERS and bool({name, canonical} & {*_RESET_AT_KEYFRAMES})


def _from_packets(media: Media) -> FrameIndex | None:
    """The index by demuxing alone, or None when the packets are unreliable."""
    stream = media.video_stream()
    context = stream.codec_context
    times, starts = array("q"), array("b")
    for packet in bounded(media.container.demux(stream), media.name):
        if not packet.size or packet.is_corrupt or _is_hidden(packet, context):
            continue
        if any(packet.has_sidedata(kind) for kind in _SIDE_DATA_OF_CHANGES):
            return None
        if packet.is_discard:
            if times:  # an edit that cuts inside the file
                return None
            continue
        if packet.pts is None:
            return None
        times.append(packet.pts)
        starts.append(_starts_decoding(packet, context))
    if not times:
        return None
    stored = np.array(times, np.int64)
    steps = np.diff(stored)
    never_reordered = len(stored) > 1 and bool(np.all(steps > 0))
    if context.has_b_frames and never_reordered:  # the container dropped the display order
        return None
    order = np.argsort(stored, kind="stable")
    shown = stored[order]
    if np.any(np.diff(shown) <= 0):
        return None
    if len(shown) == 1:
        return None  # its duration says the rate
    starting = np.array(starts, bool)[order]
    starting[0] = True
    return FrameIndex(shown, np.flatnonzero(starting), stream.time_base)


def _starts_decoding(packet, context) -> bool:
    """Whether the decoder needs nothing before this packet for the frames that are shown after it."""
    if not packet.is_keyframe:
        return False
    kinds = _STARTS.get(context.name)
    return kinds is None or _first_picture(bytes(packet), context) in kinds


def _first_picture(data: bytes, context) -> int:
    """The type of the first unit of a packet that holds a picture; -1 without one."""
    extra = context.extradata or b""
    hevc = context.name == "hevc"
    for start in _units(data, extra, hevc):
        if start >= len(data):
            break
        kind = (data[start] >> 1) & 63 if hevc else data[start] & 31
        if kind < 32 if hevc else 1 <= kind <= 5:
            return kind
    return -1


def _units(data: bytes, extra: bytes, hevc: bool) -> Iterator[int]:
    """Where the network abstraction units of a packet begin: by lengths (mp4, Matroska) or start codes (Annex B)."""
    place = 21 if hevc else 4
    if extra[:1] == b"\x01" and len(extra) > place:
        size, at = (extra[place] & 3) + 1, 0
        while at + size < len(data):
            yield at + size
            at += size + int.from_bytes(data[at : at + size], "big")
        return
    at = data.find(b"\0\0\1")
    while at >= 0:
        yield at + 3
        at = data.find(b"\0\0\1", at + 3)


def _is_hidden(packet, context) -> bool:
    """Whether the packet holds a reference picture that is never shown (VP8, RFC 6386, section 9.1)."""
    return context.codec.canonical_name == "vp8" and not bytes(packet)[0] >> 4 & 1


def _tail_decodes(media: Media, index: FrameIndex) -> bool:
    """Whether the frames from the last keyframe on decode to exactly the times the packets promise."""
    start = index.pts[index.keyframes[-1]]
    try:
        decoded = [frame.pts for frame in frames_from(media, int(start))]
    except readable_errors():
        return False
    return [pts for pts in decoded if pts >= start] == index.pts[index.keyframes[-1] :].tolist()


def _from_frames(media: Media) -> FrameIndex | None:
    """The index by decoding the file; what follows the first undecodable packet is left out."""
    stream = media.video_stream()
    pts, length = array("q"), 0
    timed = True
    duration = None
    try:
        for frame in bounded(media.container.decode(stream), media.name):
            duration = frame.duration if length == 0 else duration
            length += 1
            timed = timed and frame.pts is not None
            if timed:
                pts.append(frame.pts)
    except readable_errors() as error:
        if isinstance(error, UserError) or (length == 0 and isinstance(error, OSError | MemoryError)):
            raise
    if not length:
        return None
    times = np.array(pts, np.int64)
    if timed and length > 1 and np.all(np.diff(times) > 0):
        return FrameIndex(times, np.zeros(1, np.int64), stream.time_base, timestamped=False)
    return FrameIndex.counted(length, _nominal_rate(stream, length, duration))


def _nominal_rate(stream, frames: int, duration: int | None) -> Fraction:
    """Frames per second where times do not say it: what the header says, unless the stream's length says otherwise.

    A single frame's own duration comes first, and AVI headers may count twice the frames that there are.
    """
    seconds = stream.duration and stream.time_base and stream.duration * stream.time_base
    measured = frames / seconds if seconds else None
    stated = next((Fraction(r) for r in (stream.average_rate, stream.guessed_rate) if r and 0.01 <= r <= 1000), None)
    if stated and measured and not 0.67 < stated / measured < 1.5:
        stated = None
    own = 1 / (duration * stream.time_base) if frames == 1 and duration and stream.time_base else None
    plausible = [Fraction(rate) for rate in (own, stated, measured) if rate and 0.01 <= rate <= 1000]
    return plausible[0].limit_denominator(1001) if plausible else Fraction(25)
