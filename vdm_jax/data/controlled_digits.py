"""The data set of captioned digits with control maps, drawn on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from vdm_jax.conditions.control import MAPS
from vdm_jax.configuration import Length, Split, check_value, config
from vdm_jax.data.folder import in_range
from vdm_jax.data.source import ReadAsIs
from vdm_jax.digits.clips import DIGIT_WORDS, DigitClip, DigitClips, caption_words, generate_clip, prompts
from vdm_jax.digits.controls import Kind, draw_control
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.errors import UserError


@config
class ControlledDigits(DigitClips, ReadAsIs):
    """The clips of `CaptionedDigits`, next to each the maps of some kinds (`digits/controls.py`), the first as
    `control`, further ones as `control_1` to `control_3`. Nothing is stored; splits are those of the clips."""

    controls: Annotated[tuple[Kind, ...], Length()] = ("edges",)
    says_digit: bool = True  # in captions; False: "a red moving left", where a map says which digit it is

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.controls)) < len(self.controls) or len(self.controls) > len(MAPS):
            raise UserError(f"ControlledDigits.controls={self.controls}; permitted: up to {len(MAPS)} kinds, each once")

    def open(self, split: str, data_dir: Path) -> ControlledDigitsSource:
        """The clips of one split."""
        check_value(split, Split, "split")
        return ControlledDigitsSource(self, split)

    def clip_shape(self) -> tuple[int, int, int]:
        """`(T, H, W)` of every clip."""
        return self.frames, self.size, self.size

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that a caption can contain, sorted."""
        return caption_words()

    def scorer(self) -> DigitScorer | None:
        """What says of clips whether they show what their captions ask for; None where captions do not say all."""
        return DigitScorer(self) if self.says_digit else None


class ControlledDigitsSource:
    """One split: `source[i]` has `video`, `caption`, `fps` and the maps; `source.clip_of(i)` is the clip with its
    digits, stamps and tracks."""

    def __init__(self, spec: ControlledDigits, split: str):
        self.spec, self.split = spec, split

    def __len__(self) -> int:
        return self.spec.clips(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip, spec = self.clip_of(index), self.spec
        maps = {name: draw_control(clip, kind) for name, kind in zip(MAPS, spec.controls, strict=False)}
        return {"video": clip.video, "caption": self._said(clip.caption), "fps": float(spec.fps)} | maps

    def clip_of(self, index: int) -> DigitClip:
        """Clip `index` with its digits, stamps and tracks."""
        return generate_clip(self.spec, self.split, in_range(index, len(self)))

    def captions(self) -> Iterator[str]:
        """The caption of every clip, without drawing it."""
        yield from map(self._said, prompts(self.spec, self.split, len(self)))

    def _said(self, caption: str) -> str:
        return caption if self.spec.says_digit else without_digits(caption)


def without_digits(caption: str) -> str:
    """A caption without the words that say which digit it is."""
    return " ".join(word for word in caption.split() if not word.isdigit() and word not in DIGIT_WORDS)
