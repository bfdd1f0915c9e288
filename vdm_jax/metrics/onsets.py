"""When sounds begin: peaks of the increase of a mel spectrogram (Boeck et al. 2012), with the settings of librosa,
which the published code of AV-Align calls.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int

from vdm_jax.errors import UserError

RATE = 22_050  # samples a second
_WINDOW, _HOP, _BANDS = 2048, 512, 128  # samples, samples, mel bands
_LOUDEST = 2.0**31  # of samples: whole numbers of 32 bits; squares of spectra of far larger ones are infinite
_RANGE = 80  # dB below the loudest that are heard
_LONG = 4  # frames of 23 ms on either side that a peak is held against on average, its own among them after
_ABOVE = 0.07  # that average, of the largest increase
_WAIT = 1  # frames between two peaks


def onsets(sound: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
    """Seconds at which sounds begin, of mono sound at `RATE`. Raises `UserError` for other shapes and values."""
    strength = onset_strength(sound)
    return peaks(strength) * (_HOP / RATE)


def onset_strength(sound: Float[np.ndarray, " N"]) -> Float[np.ndarray, " T"]:
    """Mean increase of the mel bands, dB, for each frame of `_HOP` samples."""
    with np.errstate(over="ignore"):
        sound = np.asarray(sound, np.float32)
    if sound.ndim != 1 or not sound.size or not np.isfinite(sound).all() or np.abs(sound).max() > _LOUDEST:
        raise UserError(f"sound of shape {list(sound.shape)}; permitted: [N], finite, at {RATE} samples a second, "
                        f"magnitudes up to {_LOUDEST:g}")
    power = np.abs(_spectra(sound)) ** 2
    loudness = 10 * np.log10(np.maximum(1e-10, _mel_bands() @ power))
    loudness = np.maximum(loudness, loudness.max() - _RANGE)
    increase = np.maximum(0, np.diff(loudness, axis=1)).mean(0)
    # An increase belongs to the later frame, and a window hears a sound half its length before the middle.
    before = 1 + _WINDOW // (2 * _HOP)
    return np.concatenate([np.zeros(before), increase])[: power.shape[1]]


def peaks(strength: Float[np.ndarray, " T"]) -> Int[np.ndarray, " M"]:
    """Frames that are the largest of themselves and the one before, and stand out from those around them."""
    x = strength - strength.min()
    x = x / (x.max() + np.finfo(x.dtype).tiny)
    if not x.any():
        return np.zeros(0, int)
    found, place = [], 0
    while place < len(x):
        largest = x[place] == x[max(0, place - 1) : place + 1].max()
        around = x[max(0, place - _LONG) : place + _LONG + 1]
        if largest and x[place] >= around.mean() + _ABOVE:
            found.append(place)
            place += _WAIT
        place += 1
    return np.array(found, int)


def _spectra(sound: np.ndarray) -> np.ndarray:
    """Spectra of Hann windows around every `_HOP`-th sample; there is silence beyond the ends."""
    padded = np.pad(sound, _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    return np.fft.rfft(windows * hann.astype(np.float32), axis=1).T


@functools.cache
def _mel_bands() -> Float[np.ndarray, "M F"]:
    """Triangles of equal area over the mel scale of Slaney's Auditory Toolbox: linear to 1 kHz, then logarithmic."""
    step, knee = 200 / 3, 1000.0  # Hz a mel below the knee, Hz
    growth = np.log(6.4) / 27  # a mel above it
    top = knee / step + np.log(RATE / 2 / knee) / growth
    mels = np.linspace(0, top, _BANDS + 2)
    edges = np.where(mels < knee / step, mels * step, knee * np.exp(growth * (mels - knee / step)))
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
