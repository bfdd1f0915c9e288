"""What a network's config says of its conditions: the part of the protocol of networks that belongs to this room."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from vdm_jax.conditions.conditioning import Way, conditions_of
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.reference import Reference
from vdm_jax.conditions.strokes import DrawnStrokes
from vdm_jax.conditions.text import TextInput


class FrameNoise(NamedTuple):
    """How conditioning frames are noised, on which a network is conditioned (He et al. 2022, arXiv 2211.13221, section
    3.3)."""

    steps: int  # in training, to a timestep below this
    step: int  # in sampling, to this timestep
    schedule: Any  # whose timesteps they are
    told: bool = True  # whether the network takes the timestep


@runtime_checkable
class Conditioned(Protocol):
    """What a network is conditioned on: by each member a condition of this room says that it is taken. A config
    inherits this, which says that all are absent. A further condition has no member: `conditions` names it."""

    text: TextInput | None = None
    # Whether the video attends to its tokens by cross-attention alone, where factors on them act
    crosses_text: bool = False
    classes: int = 0  # of a class label; 0: takes none
    scalars: tuple[str, ...] = ()  # names of numbers, such as "fps"
    low_resolution: bool = False  # a low-resolution video
    first_frame: bool = False  # latents of the first frame
    conditioning_frames: bool = False  # conditioning frames and their mask
    mask_channels: int = 1  # of that mask; more: see `masks_frames`
    in_place: bool = False  # conditioning frames take the place of the noisy ones, and have no loss
    frame_noise: FrameNoise | None = None  # on conditioning frames; None: they stay as they are
    references: tuple[Reference, ...] = ()  # features that attention layers also see
    reference_net: bool = False  # a second network sees a reference picture, whose features attention layers see
    teacher_forcing: bool = False  # training shows it the clean clip
    conditions: tuple[Input, ...] = ()  # further conditions
    # How strokes are drawn in training, by a network that completes them to the optical flow; None: it does not
    flow_strokes: DrawnStrokes | None = None

    @property
    def reference_picture(self) -> bool:
        """Whether it takes a reference picture: that second network, or tokens that are made of the picture."""
        return self.reference_net

    @property
    def scalar_defaults(self) -> dict[str, float]:
        """Scalars of videos of which nothing else is said."""
        return {}

    @property
    def masks_frames(self) -> bool:
        """Whether the mask of conditioning frames is of the frames that each latent one stands for, next to latents of
        the whole clip, grey where nothing is given (Wan, image to video)."""
        return self.mask_channels > 1

    @property
    def prompted(self) -> bool:
        """Whether it takes what classifier-free guidance can leave out, such as text, a class or the first frame."""
        return any(condition.guidance == "prompt" for condition in conditions_of(self))

    def entering(self, way: Way) -> tuple[Input, ...]:
        """Its further conditions that enter in this way."""
        return tuple(entry for entry in self.conditions if entry.way == way)
