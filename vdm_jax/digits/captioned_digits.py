"""The captioned digits of the demo as a data set: how it is prepared, opened and scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vdm_jax.configuration import SPLITS, config
from vdm_jax.digits.clips import DigitClips, caption_words
from vdm_jax.digits.scorer import DigitScorer

PACKED = 50  # prepared clips take no less than this part of their bytes (20 measured)


@config
class CaptionedDigits(DigitClips):
    """One or two coloured handwritten digits that move as the caption says, drawn without a download.

    A `ClipData` (`data/source.py`), with a closed vocabulary and a scorer that sees what a clip shows.
    """

    def open(self, split: str, data_dir: Path) -> Any:
        """The clips of one split; the data set is prepared first where it is not there yet."""
        from vdm_jax.digits.tfds import PreparedDigitsSource

        self.prepare(data_dir)
        return PreparedDigitsSource(self, data_dir, split)

    def prepare(self, data_dir: Path) -> Path:
        """Writes all splits below `data_dir`, unless they are there; returns their folder."""
        from vdm_jax.digits.tfds import prepare_captioned_digits

        return prepare_captioned_digits(self, data_dir)

    def stored_bytes(self) -> int:
        """Bytes on disk of what `prepare` writes, at the least."""
        return sum(map(self.clips, SPLITS)) * math.prod(self.clip_shape()) * 3 // PACKED

    @property
    def padded(self) -> bool:
        """Clips have all their frames."""
        return False

    def clip_shape(self) -> tuple[int, int, int]:
        """`(T, H, W)` of every clip."""
        return self.frames, self.size, self.size

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that a caption can contain, sorted."""
        return caption_words()

    def scorer(self) -> DigitScorer:
        """What says of clips whether they show what their captions ask for. Raises `UserError` without scikit-learn."""
        return DigitScorer(self)
