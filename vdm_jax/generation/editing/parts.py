"""What a method of editing sees of a stage, and what all methods have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from vdm_jax.diffusion.arrays import Denoiser, Video, noise_from_keys
from vdm_jax.diffusion.inversion import diffused
from vdm_jax.diffusion.null_text import Null, NullDenoiser
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Sampler
from vdm_jax.diffusion.steps import Step
from vdm_jax.diffusion.windows import ConditionalDenoiser
from vdm_jax.generation.editing.words import WordEdits
from vdm_jax.generation.generator import Generator
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage


class NullParts(NamedTuple):
    """A stage whose guidance goes by given embeddings of the null caption."""

    null: Null  # of the null caption itself, or of the negative one
    source: NullDenoiser  # with the given video's caption and the stage's guidance
    target: NullDenoiser  # with the new caption


class PairParts(NamedTuple):
    """A stage that denoises each given video and, next to it in the batch, what is made of it, whose cross-attention
    sees the given video's."""

    denoise: Denoiser  # of `[2 B, ...]`
    keys: Key[Array, " N"]  # two the same of each video


class WordParts(NamedTuple):
    """A stage that reads captions, for methods that edit by attention to their words."""

    words: WordEdits
    estimates: int  # of a video that a step with the new caption combines, neighbours in the batch, the first with it


class EditParts(NamedTuple):
    """A stage as functions: of what the given video shows, and of what it shall show."""

    source: Denoiser  # conditioned on the given video's caption, with the guidance of inversion
    target: Denoiser  # conditioned on the new caption, with the stage's guidance
    keys: Key[Array, " B"]
    steps: Step  # of the sampler, all of them
    process: Process
    sampler: Sampler
    shared_noise: bool = False  # all frames of a video get the same noise
    nulls: NullParts | None = None  # of methods that optimise them, and stages that read embeddings of captions
    pair: PairParts | None = None  # of methods that sample pairs, and stages that read captions
    words: WordParts | None = None  # of methods that edit by words, and stages that read captions

    def there_and_back(self) -> EditParts:
        """The same with the given video's caption as the new one, to see what the way costs."""
        nulls = None if self.nulls is None else self.nulls._replace(target=self.nulls.source)
        return self._replace(target=self.source, nulls=nulls, pair=None, words=None)


def each_row(function: Callable[..., Any], *columns: Sequence[np.ndarray]) -> list[Any]:
    """A function of every row of some columns. A row that equals the one before, as copies do that fill a batch up to
    the number of devices, has its result."""
    done, before = [], ()
    for row in zip(*columns, strict=True):
        same = bool(done) and all(map(np.array_equal, row, before))
        done.append(done[-1] if same else function(*row))
        before = row
    return done


class EditsStage:
    """What methods of editing have unless they say otherwise."""

    name: ClassVar[str]
    strength: float  # share of the steps that are made, the last ones
    inverts: ClassVar[bool] = True  # whether it goes by the caption of the given video
    needs_source: ClassVar[bool] = False  # whether it cannot do without that caption
    optimises_null: ClassVar[bool] = False  # whether it goes by `EditParts.nulls`
    samples_pairs: ClassVar[bool] = False  # whether it goes by `EditParts.pair`
    carries_first: ClassVar[bool] = False  # whether every clip of a long video begins with the video's first frame
    by_key_frames: ClassVar[bool] = False  # whether it makes single frames, and clips of any number of them
    whole_video: ClassVar[bool] = False  # whether a clip is the whole video, where the model makes any number of frames

    def stage(self, stage: Stage) -> Stage:
        """The stage that edits: as it is."""
        return stage

    def files(self) -> tuple[Path, ...]:
        """Files that the method reads next to the stage: none."""
        return ()

    def check_files(self) -> None:
        """Raise `UserError` where these cannot be read."""

    def check(self, stage: Stage, sampling: Sampling) -> None:
        """Raise `UserError` for a stage, or its sampling, that the method cannot edit by."""

    def by_words(
        self, stage: Stage, generator: Generator, captions: Sequence[str], sources: Sequence[str] | None
    ) -> WordEdits | None:
        """For methods that edit by attention to words, what these are; None: it is left alone."""
        return None

    def notes(self, stage: Stage, params: Any) -> list[str]:
        """What the user should know of a stage with these parameters before it edits: nothing."""
        return []

    def composed(self, stage: Stage, estimate: Callable[[Stage], ConditionalDenoiser]) -> ConditionalDenoiser:
        """The estimate of the stage that edits, of those of stages with the same parameters: the network's."""
        return estimate(stage)

    def pauses(self, steps: int) -> tuple[int, ...]:
        """Numbers of the steps, of so many, whose estimate the host changes (`at_pause`): none. Methods that have some
        make all steps by deterministic DDIM and have `begin` in place of `edit`."""
        return ()


def from_one_noise(x: Video, parts: EditParts, steps: Step, strength: float) -> Video:
    """z at the first of the steps, all frames with the same noise: x diffused, or at strength 1 noise alone."""
    family = parts.process.schedule.family
    if strength < 1:
        return diffused(x, parts.keys, steps, parts.process, True)
    std = 1.0 if family.name == "vp" else family.alpha_sigma(steps.level[0])[1]
    return std * noise_from_keys(parts.keys, 0, x.shape, True)
