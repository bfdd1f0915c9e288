"""What a network hears of a clip: vectors of each of its frames, from log-mel spectrograms as published encoders take
them, or from the vectors that any encoder made of the sound beforehand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from vdm_jax.configuration import Positive, Size, Width, config
from vdm_jax.data.names import printable
from vdm_jax.errors import UserError
from vdm_jax.video.sound import WAV, read_sound, sound_seconds

Track = Float[np.ndarray, "N C"]  # vectors at equal distances in time, from the beginning on
Encoder = Literal["beats", "clap"]
_SAMPLES: dict[Encoder, int] = {"beats": 16_000, "clap": 48_000}  # a second of the sound that it takes
_SPECTRA = 100.0  # a second
_SLACK = 0.05  # seconds that a sound may end before its last frame does: encoders cut off parts of a window


class _OfFrames:
    """Vectors of frames from a track."""

    rows: int

    def of_frames(self, folder: Path, name: str, seconds: Float[np.ndarray, " T"], fps: float,
                  until: float | None = None) -> Float[np.ndarray, "T F"]:
        """What is heard while each frame of a video is shown: `rows` vectors at equal distances, one after the other.

        Args:
          folder, name: of the video, or of a file of sound.
          seconds: at which the frames begin.
          fps: frames per second, so how long each lasts.
          until: seconds that the sound has to last at the most; by default as long as the frames.

        Raises `UserError` for a video without sound, or whose sound ends before the frames do.
        """
        track, rate = self.track(folder, name)
        end, lasts = float(seconds[-1]) + 1 / fps, len(track) / rate
        check_length(name, lasts, end if until is None else min(end, until))
        return self.cut(track, rate, seconds, fps)

    def cut(self, track: Track, rate: float, seconds: Float[np.ndarray, " T"], fps: float) -> Float[np.ndarray, "T F"]:
        """The `rows` vectors of each frame, of a track of so many a second; the last one stays to the end."""
        times = seconds[:, None] + (np.arange(self.rows) + 0.5) / (self.rows * fps)
        places = np.clip((times * rate).astype(int), 0, len(track) - 1)
        return track[places].reshape(len(seconds), -1).astype(np.float32)

    def track(self, folder: Path, name: str) -> tuple[Track, float]:
        """The vectors of a file, and how many there are a second."""
        raise NotImplementedError

    def seconds(self, folder: Path, name: str) -> float | None:
        """How long the sound of a file lasts, as far as that is known without decoding it."""
        track, rate = self.track(folder, name)
        return len(track) / rate

    def check(self, folder: Path, name: str, duration: float) -> None:
        """Raise `UserError` for a video of a duration, seconds, that has no sound or a shorter one."""
        lasts = self.seconds(folder, name)
        if lasts is not None:
            check_length(name, lasts, duration)


def check_length(name: str, lasts: float, needed: float) -> None:
    """Raise `UserError` for a sound that is shorter than the video; in seconds."""
    if lasts < needed - _SLACK:
        raise UserError(f"the sound of {printable(name)} lasts {lasts:.3g} s and its frames {needed:.3g} s; "
                        "permitted: a sound as long as the video", "sound.shorter")


@config
class LogMel(_OfFrames):
    """Log-mel spectrograms of the sound in the videos, or in .wav files next to them."""

    # As which encoder takes them: BEATs (Chen et al. 2022, arXiv 2212.09058), of TempoTokens, 128 bands a hundred times
    # a second of sound at 16 kHz; or CLAP (Wu et al. 2022, arXiv 2211.06687), 64 bands a hundred times a second at 48
    # kHz
    encoder: Encoder = "beats"
    rows: Size = 4  # spectra of each frame

    @property
    def width(self) -> int:
        """Numbers of each frame: `Input.width` of the network's sound."""
        return self.rows * {"beats": 128, "clap": 64}[self.encoder]

    def track(self, folder: Path, name: str) -> tuple[Track, float]:
        """The spectrogram of a file."""
        path = folder / name
        wav = path.with_suffix(WAV)
        stamps = tuple(place.stat().st_mtime_ns if place.is_file() else 0 for place in (path, wav))
        return _spectrogram(path, self.encoder, stamps), _SPECTRA

    @property
    def sample_rate(self) -> int:
        """Samples a second of the sound that the encoder takes."""
        return _SAMPLES[self.encoder]

    def of_sound(self, sound: Float[np.ndarray, " N"], seconds: Float[np.ndarray, " T"], fps: float,
                 ) -> Float[np.ndarray, "T F"]:
        """The same as `of_frames` of sound that is in no file, in [-1, 1] at `sample_rate`."""
        return self.cut(_SPECTROGRAMS[self.encoder](sound), _SPECTRA, seconds, fps)

    def seconds(self, folder: Path, name: str) -> float | None:
        """By the header of the file."""
        return sound_seconds(folder / name)


@config
class SoundEmbeddings(_OfFrames):
    """The vectors that an encoder of sound made of each video: NAME.npy [N, width]."""

    path: str  # folder of these
    width_of_vector: Width  # numbers of one
    rate: Positive  # vectors a second
    rows: Size = 1  # vectors of each frame

    @property
    def width(self) -> int:
        """Numbers of each frame: `Input.width` of the network's sound."""
        return self.rows * self.width_of_vector

    def track(self, folder: Path, name: str) -> tuple[Track, float]:
        """The vectors of a file."""
        place = (Path(self.path).expanduser() / name).with_suffix(".npy")
        try:
            array = np.lib.format.open_memmap(place, mode="r")
        except Exception as error:  # a damaged file can fail in any way
            raise UserError(f"{place}: not a readable array ({error})", "sound.embeddings") from error
        if array.ndim != 2 or array.shape[1] != self.width_of_vector or array.dtype.kind != "f" or not len(array):
            raise UserError(f"{place}: {array.dtype} {list(array.shape)}; permitted: floats "
                            f"[N, {self.width_of_vector}]", "sound.embeddings")
        return array, self.rate


SoundTrack = LogMel | SoundEmbeddings


@functools.lru_cache(maxsize=16)
def _spectrogram(path: Path, encoder: Encoder, stamps: Any) -> Track:
    return _SPECTROGRAMS[encoder](read_sound(path, _SAMPLES[encoder]))


def beats_spectrogram(sound: Float[np.ndarray, " N"]) -> Float[np.ndarray, "M 128"]:
    """That of BEATs, of sound at 16 kHz: Kaldi's filter bank (25 ms every 10 ms, each without its mean, pre-emphasis of
    0.97, Povey's window), normalised by the mean and twice the deviation of AudioSet."""
    size, step, width = 400, 160, 512
    sound = np.asarray(sound, np.float64) * 2**15
    sound = np.pad(sound, (0, max(0, size - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, size)[::step]
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = np.hanning(size) ** 0.85
    power = np.abs(np.fft.rfft(frames * window, width)) ** 2
    edges = np.linspace(_kaldi_mel(20.0), _kaldi_mel(8000.0), 128 + 2)
    mel = _kaldi_mel(np.arange(width // 2 + 1) * 16_000 / width)
    energies = power @ _triangles(mel, edges)
    return ((np.log(np.maximum(energies, 1.1920929e-7)) - 15.41663) / (2 * 6.55582)).astype(np.float32)


def clap_spectrogram(sound: Float[np.ndarray, " N"]) -> Float[np.ndarray, "M 64"]:
    """That of CLAP, of sound at 48 kHz: decibels of 64 bands from 50 to 14,000 Hz on Slaney's scale, each of unit area
    (1024 samples every 480, Hann's window, the sound mirrored at its ends)."""
    width, step = 1024, 480
    sound = np.asarray(sound, np.float64)
    sound = np.pad(sound, (0, max(0, width - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, width // 2, mode="reflect"), width)[::step]
    power = np.abs(np.fft.rfft(frames * np.hanning(width + 1)[:-1])) ** 2
    edges = _slaney_hertz(np.linspace(_slaney_mel(50.0), _slaney_mel(14_000.0), 64 + 2))
    bands = _triangles(np.arange(width // 2 + 1) * 48_000 / width, edges) * (2 / (edges[2:] - edges[:-2]))
    return (10 * np.log10(np.maximum(power @ bands, 1e-10))).astype(np.float32)


_SPECTROGRAMS: dict[Encoder, Callable[[Float[np.ndarray, " N"]], Track]] = {
    "beats": beats_spectrogram, "clap": clap_spectrogram}


def _triangles(places: Float[np.ndarray, " F"], edges: Float[np.ndarray, " E"]) -> Float[np.ndarray, "F B"]:
    """Filters that rise from one edge to the next and fall to the one after it."""
    up = (places[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - places[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(up, down), 0)


def _kaldi_mel(hertz: Any) -> Any:
    return 1127 * np.log1p(hertz / 700)


_LINEAR, _TURN = 200 / 3, 1000.0  # hertz of a mel up to 1 kHz, on Slaney's scale, which is logarithmic above
_PER_OCTAVE = 27 / np.log(6.4)


def _slaney_mel(hertz: float) -> float:
    return hertz / _LINEAR if hertz < _TURN else _TURN / _LINEAR + np.log(hertz / _TURN) * _PER_OCTAVE


def _slaney_hertz(mel: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    turn = _TURN / _LINEAR
    return np.where(mel < turn, mel * _LINEAR, _TURN * np.exp((np.maximum(mel, turn) - turn) / _PER_OCTAVE))
