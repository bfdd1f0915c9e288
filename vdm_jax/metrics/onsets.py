"""When sounds begin: peaks of the increase of a mel spectrogram (Boeck et al. 2012), by librosa, whose settings the
published code of AV-Align takes.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float

from vdm_jax.errors import UserError, require_package

RATE = 22_050  # samples a second
_LOUDEST = 2.0**31  # of samples: whole numbers of 32 bits; squares of spectra of far larger ones are infinite


def require_librosa() -> None:
    """Raises `UserError` naming the extra where librosa is not installed."""
    require_package("av_align", "librosa", "metrics")


def onsets(sound: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
    """Seconds at which sounds begin, of mono sound at `RATE`. Raises `UserError` for other shapes and values, and where
    librosa is not installed."""
    require_librosa()
    import librosa

    with np.errstate(over="ignore"):
        sound = np.asarray(sound, np.float32)
    if sound.ndim != 1 or not sound.size or not np.isfinite(sound).all() or np.abs(sound).max() > _LOUDEST:
        raise UserError(f"sound of shape {list(sound.shape)}; permitted: [N], finite, at {RATE} samples a second, "
                        f"magnitudes up to {_LOUDEST:g}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sounds shorter than a window, which are silence beyond their end
        return librosa.onset.onset_detect(y=sound, sr=RATE, units="time")
