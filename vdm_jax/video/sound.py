"""The sound of media files, read by PyAV as one channel at any rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from vdm_jax.errors import UserError
from vdm_jax.video.containers import Media, display_name, readable_errors

WAV = ".wav"  # ending of a file of sound of the name of a video, which is read where the video has none


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
