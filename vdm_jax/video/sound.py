"""The sound of media files, read by PyAV as one channel at any rate, or taken over into another file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.errors import UserError
from vdm_jax.video.containers import Media, display_name, readable_errors

WAV = ".wav"  # ending of a file of sound of the name of a video, which is read where the video has none
# Codecs of sound that mp4 holds as they are; others become AAC
IN_MP4 = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
_RATE = 48000  # samples a second of sound that is encoded
_BEFORE = 0.05  # seconds of sound before the first frame that are kept: a decoder's run-up (2,112 samples of AAC)


def read_sound(path: Path, rate: int) -> Float[np.ndarray, " N"]:
    """The sound of a file, or of the .wav file of its name next to it, in [-1, 1] at `rate` samples a second.

    Raises `UserError` where there is none.
    """
    import av

    for place in _places(path):
        try:
            with Media(place) as media:
                if not media.container.streams.audio:
                    continue
                resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
                parts = [part.to_ndarray() for frame in [*media.container.decode(audio=0), None]
                         for part in resampler.resample(frame)]
        except readable_errors() as error:
            raise _unreadable(place, error) from error
        if parts:
            return np.concatenate(parts, axis=1)[0]
    raise _silent(path)


def sound_seconds(path: Path) -> float | None:
    """How long the sound of a file lasts by its header; None where that does not say it. Raises `UserError` as
    `read_sound`."""
    for place in _places(path):
        try:
            with Media(place) as media:
                if streams := media.container.streams.audio:
                    lasts = streams[0].duration
                    return None if lasts is None else float(lasts * streams[0].time_base)
        except readable_errors() as error:
            raise _unreadable(place, error) from error
    raise _silent(path)


def has_sound(path: Path) -> bool:
    """Whether a media file has a stream of sound in it. Raises `UserError` for a file that cannot be read."""
    with Media(path) as media:
        return bool(media.container.streams.audio)


class SoundCopy:
    """The first stream of sound of a file on its way into an mp4, next to a video made anew: packet for packet where
    mp4 holds the codec, else encoded as AAC.

    Args:
      path: of the file.
      container: PyAV's, open for writing; the stream is added here.
      start: when the video begins, seconds of the file.
      seconds: how long the video lasts; sound beyond is left out.

    Raises `UserError` for a file without sound, or whose sound cannot be read.
    """

    def __init__(self, path: Path, container: Any, start: float, seconds: float):
        self._media, self._container = Media(path), container
        if not self._media.container.streams.audio:
            self._media.close()
            raise _silent(path)
        self._path, self._source = path, self._media.container.streams.audio[0]
        self._start, self._end = start, start + seconds
        if self._source.codec_context.name in IN_MP4:
            self._stream, packets = container.add_stream_from_template(self._source), self._copied()
        else:
            self._stream, packets = container.add_stream("aac", rate=_RATE, layout="stereo"), self._encoded()
        self._packets, self._waiting = packets, None

    def until(self, seconds: float) -> None:
        """Write what sounds in the first so many seconds of the video and is not written yet."""
        try:
            while self._packets is not None:
                packet = self._waiting or next(self._packets, None)
                self._waiting = packet
                if packet is None:
                    self._packets = None
                elif packet.dts is not None and packet.dts * packet.time_base > seconds:
                    return
                else:
                    self._container.mux(packet)
                    self._waiting = None
        except readable_errors() as error:
            raise _unreadable(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._media.close()

    def _copied(self) -> Iterator[Any]:
        shift = round(self._start / self._source.time_base)
        for packet in self._media.container.demux(self._source):
            if packet.dts is None or packet.pts is None:  # the empty one at the end
                continue
            at = float(packet.pts * self._source.time_base)
            lasts = float((packet.duration or 0) * self._source.time_base)
            if at + lasts < self._start - _BEFORE or at >= self._end:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, self._stream
            yield packet

    def _encoded(self) -> Iterator[Any]:
        import av

        resampler, written = av.AudioResampler(format="fltp", layout="stereo", rate=_RATE), 0
        for frame in self._media.container.decode(self._source):
            at = 0.0 if frame.time is None else frame.time
            if at + frame.samples / frame.sample_rate <= self._start or at >= self._end:
                continue
            for part in resampler.resample(frame):
                part.pts, part.time_base = written, Fraction(1, _RATE)
                written += part.samples
                yield from self._stream.encode(part)
        yield from self._stream.encode(None)


def _places(path: Path) -> list[Path]:
    return [place for place in (path, path.with_suffix(WAV)) if place.is_file()]


def _unreadable(place: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"the sound of {display_name(place)} cannot be read: {error}; permitted: what FFmpeg reads",
                     "sound")


def _silent(path: Path) -> UserError:
    return UserError(f"{display_name(path)} has no sound; permitted: a stream of sound in it, or a {WAV} file of "
                     "its name next to it", "sound")
