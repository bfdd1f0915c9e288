"""The data set of digits that jump to the beat of a sound, drawn on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.configuration import Split, check_value, config
from vdm_jax.data.folder import in_range
from vdm_jax.data.sound import LogMel
from vdm_jax.data.source import ReadAsIs
from vdm_jax.digits.beats import BeatClip, BeatSpec, make_beat_clip
from vdm_jax.digits.clips import caption_words


@config
class DigitBeats(BeatSpec, ReadAsIs):
    """One digit that jumps at each beat of its sound, of which a network hears log-mel spectra. Captions say which
    digit in which colour, and not when it jumps. Nothing is stored."""

    sound: LogMel = LogMel()  # what is heard in each frame: the clip's `sound`

    def open(self, split: str, data_dir: Path) -> DigitBeatsSource:
        """The clips of one split."""
        check_value(split, Split, "split")
        return DigitBeatsSource(self, split)

    def clip_shape(self) -> tuple[int, int, int]:
        """`(T, H, W)` of every clip."""
        return self.frames, self.size, self.size

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that a caption can contain, sorted: that of captioned digits."""
        return caption_words()

    def heard(self, clip: BeatClip) -> Float[np.ndarray, "T F"]:
        """What is heard in each frame of a clip."""
        return self.sound.of_sound(clip.sound(self.sound.sample_rate), np.arange(self.frames) / self.fps, self.fps)


class DigitBeatsSource:
    """One split: `source[i]` has `video`, `caption`, `fps` and `sound`; `source.clip_of(i)` is the clip with its beats
    and its track."""

    def __init__(self, spec: DigitBeats, split: str):
        self.spec, self.split = spec, split

    def __len__(self) -> int:
        return self.spec.clips(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clip_of(index)
        return {"video": clip.video, "caption": clip.caption, "fps": float(self.spec.fps),
                "sound": self.spec.heard(clip)}

    def clip_of(self, index: int) -> BeatClip:
        """Clip `index` with its beats and its track."""
        return make_beat_clip(self.spec, self.split, in_range(index, len(self)))

    def captions(self) -> Iterator[str]:
        """The caption of every clip, of which each is drawn."""
        yield from (self.clip_of(index).caption for index in range(len(self)))
