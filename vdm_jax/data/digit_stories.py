"""The data set of stories of digits: clips of frames near together or far apart, with a caption for each frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from vdm_jax.configuration import Count, Length, Size, Split, check_value, config
from vdm_jax.data.folder import in_range
from vdm_jax.data.source import ReadAsIs
from vdm_jax.digits.clips import caption_words
from vdm_jax.digits.stories import Story, StorySpec, make_story
from vdm_jax.errors import UserError


@config
class DigitStories(StorySpec, ReadAsIs):
    """One digit in the same handwriting for a long time, whose colour and motion change at known frames.

    A clip is every s-th frame of a story, s one of `strides`: for a model of several time scales, such as 1, L - 1, and
    (L - 1)^2 for NUWA-XL's hierarchy of clips of L frames. Each frame has the caption of its time. With
    `Training.random_starts` story, stride and start are drawn anew each time; else they follow from the clip's number.
    """

    frames: Size = 16  # of a clip
    strides: Annotated[tuple[Count, ...], Length()] = (1, 15)  # from frame to frame of a clip

    frame_prompts = True  # clips have a caption for each frame

    def __post_init__(self):
        for stride in self.strides:
            if (self.frames - 1) * stride >= self.length:
                most = (self.length - 1) // max(self.frames - 1, 1)
                raise UserError(f"DigitStories.strides={self.strides} with {self.frames} frames of a story of "
                                f"length={self.length}; permitted: up to {most}")

    def open(self, split: str, data_dir: Path) -> DigitStoriesSource:
        """The clips of one split."""
        check_value(split, Split, "split")
        return DigitStoriesSource(self, split)

    def clip_shape(self) -> tuple[int, int, int]:
        """`(T, H, W)` of every clip."""
        return self.frames, self.size, self.size

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that a caption can contain, sorted."""
        return caption_words()


class DigitStoriesSource:
    """One split, drawn on demand: `source[i]` has `video`, `caption` (of its first frame), `frame_captions`, one for
    each frame, and `fps`."""

    def __init__(self, spec: DigitStories, split: str):
        self.spec, self.split = spec, split

    def __len__(self) -> int:
        return getattr(self.spec, f"{self.split}_stories")

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.clip(index, np.random.default_rng([self.spec.seed, in_range(index, len(self))]))

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip of story `index`, its stride and its start drawn."""
        spec, story = self.spec, self.story(index)
        stride = int(rng.choice(spec.strides))
        start = int(rng.integers(spec.length - (spec.frames - 1) * stride))
        return self._cut(story, range(start, start + spec.frames * stride, stride), spec.fps / stride)

    def frame(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One random frame of story `index` as a clip."""
        number = int(rng.integers(self.spec.length))
        return self._cut(self.story(index), range(number, number + 1), self.spec.fps)

    def captions(self) -> Iterator[str]:
        """Every caption of every story, without drawing it."""
        for index in range(len(self)):
            yield from (caption for _, caption in self.story(index).script())

    def story(self, index: int) -> Story:
        """Story `index`, of which nothing is drawn yet."""
        return make_story(self.spec, self.split, in_range(index, len(self)))

    def _cut(self, story: Story, frames: Sequence[int], fps: float) -> dict[str, Any]:
        captions = story.captions(frames)
        return {"video": story.draw(frames), "caption": captions[0], "frame_captions": captions, "fps": float(fps)}
