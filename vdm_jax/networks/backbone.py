"""What every network of a stage offers: the protocol between networks and the rest of the package.

Stages, conditions, generation, training and planning read these members and no others, so that a further network
touches its own file and `kinds.py`. A config inherits `Backbone`, which says what is absent by default, and its module
is called as

    module(z, logsnr, conditioning, *, train=False, images=0) -> prediction

with noisy videos or latents `[B, T, H, W, C]`, their log-SNR `[B]`, or `[B, T]` where frames have a level each, and a
`Conditioning`. `images` is the number of frames at the end that are independent images (joint training).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from vdm_jax.conditions.conditioning import Way, conditions_of
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.reference import Reference
from vdm_jax.conditions.text import TextInput


class FrameNoise(NamedTuple):
    """How conditioning frames are noised, on which a network is conditioned (He et al. 2022, arXiv 2211.13221, section
    3.3)."""

    steps: int  # in training, to a timestep below this
    step: int  # in sampling, to this timestep
    schedule: Any  # whose timesteps they are


@runtime_checkable
class Backbone(Protocol):
    """The members of a network's config."""

    # What it computes.
    out_channels: int  # of the video, or of its latents, which it takes and predicts
    reduction: tuple[int, int]  # what height and width must be multiples of
    frame_reduction: int = 1  # what the number of frames must be a multiple of
    dtype: str  # of the computation; parameters stay float32
    remat: str = "none"  # what the backward pass recomputes; `remat.py`
    remat_field: ClassVar[str] = "remat"  # the field of the config that says so

    # What it is conditioned on; each condition of `vdm_jax.conditions` says by which of these it is taken.
    text: TextInput | None = None
    classes: int = 0  # of a class label; 0: takes none
    scalars: tuple[str, ...] = ()  # names of numbers, such as "fps"
    low_resolution: bool = False  # a low-resolution video
    first_frame: bool = False  # latents of the first frame
    conditioning_frames: bool = False  # conditioning frames and their mask
    in_place: bool = False  # conditioning frames take the place of the noisy ones, and have no loss
    frame_noise: FrameNoise | None = None  # on conditioning frames; None: they stay as they are
    references: tuple[Reference, ...] = ()  # features that attention layers also see
    reference_net: bool = False  # a second network sees a reference picture, whose features attention layers see
    conditions: tuple[Input, ...] = ()  # further conditions

    @property
    def scalar_defaults(self) -> dict[str, float]:
        """Scalars of videos of which nothing else is said."""
        return {}

    @property
    def prompted(self) -> bool:
        """Whether it takes what classifier-free guidance can leave out, such as text, a class or the first frame."""
        return any(condition.guidance == "prompt" for condition in conditions_of(self))

    def entering(self, way: Way) -> tuple[Input, ...]:
        """Its further conditions that enter in this way."""
        return tuple(entry for entry in self.conditions if entry.way == way)

    def check_stage(self, stage: Any) -> None:
        """Raise `UserError` for a stage that asks of it what it cannot do."""

    def attended(self, frames: int, height: int, width: int) -> Iterator[int]:
        """Tokens of the sequences over which its layers attend, but for those of one position over frames."""
        return iter(())

    def rematerialised(self, remat: str) -> Backbone:
        """The same with another rematerialisation."""
        return dataclasses.replace(self, remat=remat)
