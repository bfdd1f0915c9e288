"""Further conditions of one array each, which a network names in its `conditions`.

To add one, subclass `InputCondition` in a file of this room and add it to the list in `conditions/__init__.py`: the
batches of a data set whose clips have that field, training, guidance, planning and `generator(captions, NAME=...)` then
take it. Networks need not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from vdm_jax.conditions.conditioning import (
    CONDITIONS,
    Condition,
    Conditioning,
    Network,
    Request,
    SampledVideos,
    Shapes,
    Sizes,
    Stage,
    TrainingClips,
    nulled,
)
from vdm_jax.conditions.low_resolution import cut_windows, scales_of
from vdm_jax.configuration import Width, config
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import resize, subsample_frames


@config
class Input:
    """A further condition that a network takes."""

    name: str  # of a registered `InputCondition`
    width: Width  # channels of its array

    def __post_init__(self):
        found = [name for name, condition in CONDITIONS.items() if isinstance(condition, InputCondition)]
        if self.name not in found:
            raise UserError(f"Input.name={self.name!r} is not a registered condition of this kind; permitted: "
                            f"{', '.join(found) or 'none is registered'}")

    @property
    def condition(self) -> InputCondition:
        """What is registered by that name."""
        return CONDITIONS[self.name]


class InputCondition(Condition):
    """One array per clip, a field of a batch and an argument of a generator by its name: channels [T, H, W, C] in the
    size of the clip, a vector [C] or features [M, C]. Where it is left out it is zero."""

    parts = ("inputs",)
    entering: ClassVar[tuple[str, ...]] = ("channels", "vector", "features")

    def __init_subclass__(cls) -> None:
        if cls.enters not in cls.entering:
            raise UserError(f"{cls.__name__}.enters={cls.enters!r} is not valid; permitted: {', '.join(cls.entering)}")
        cls.fields = (cls.name,)
        cls.frame_fields = cls.fields if cls.enters == "channels" else ()

    def taken(self, network: Network) -> bool:
        """Where the network names it."""
        return any(entry.name == self.name for entry in network.conditions)

    def width(self, network: Network) -> int:
        """Its channels, as the network says."""
        return next(entry.width for entry in network.conditions if entry.name == self.name)

    def example(self, network: Network, sizes: Sizes, grid: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
        """Shape of one clip's array, for frames, height and width as in `grid`."""
        sides = {"channels": grid, "vector": (), "features": (sizes.tokens,)}[self.enters]
        return (*sides, self.width(network)), jnp.float32

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Channels of the size of what the network denoises, features as one group."""
        shape, kind = self.example(stage.network, sizes, stage.shape[:3])
        return {f"inputs/{self.name}": ((1, *shape) if self.enters == "features" else shape, kind)}

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Channels of the size of the data set's clips."""
        return {self.name: self.example(stage.network, sizes, sizes.clip)}

    def value(self, stage: Stage, given: Array) -> Array:
        """What is given of clips `[B, ...]` as the network takes it, channels still in the size of the stage's video.
        """
        given = jnp.asarray(given, jnp.float32)
        if self.enters == "channels":
            frames = subsample_frames(given, stage.video.frames)
            return resize(frames, stage.video.height, stage.video.width, "area")
        return given[:, None] if self.enters == "features" else given

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The field of its name. Raises `UserError` where the batch has none."""
        if self.name not in batch:
            raise UserError(f"stage {stage.name!r} takes {self.name!r}, but the batch has none; permitted: a data set "
                            f"whose clips have the field {self.name!r}")
        return {"inputs": {self.name: self.value(stage, batch[self.name])}}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """Channels are cut with the clips' windows; those of appended images are zero."""
        value = conditioning.inputs[self.name]
        if self.enters != "channels":
            return {}
        if clips.corners is not None:
            scales = jnp.array(scales_of(clips.stage))
            value = cut_windows(value, clips.corners * scales, clips.stage.training.crop)
        value = _fitted(value, clips.x.shape[1] - clips.images, *clips.x.shape[2:4])
        return {"inputs": {self.name: jnp.pad(value, ((0, 0), (0, clips.images), (0, 0), (0, 0), (0, 0)))}}

    def arguments(self, network: Network) -> tuple[str, ...]:
        """One of its name."""
        return (self.name,)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The array that is given for each caption. Raises `UserError` for another shape."""
        given = request.get(self.name)
        wanted = {"channels": "[{0}, frames, height, width, {1}]", "vector": "[{0}, {1}]",
                  "features": "[{0}, tokens, {1}]"}[self.enters]
        ends, shape = (len(request.captions), self.width(stage.network)), np.shape(given)
        if len(shape) != wanted.count(",") + 1 or (shape[0], shape[-1]) != ends:
            raise UserError(f"{self.name} of shape {list(shape)} given for stage {stage.name!r}; permitted: "
                            f"{wanted.format(*ends)}")
        return {"inputs": {self.name: self.value(stage, given)}}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The arrays of the clips."""
        return {self.name: np.stack([clip[self.name] for clip in clips])} if self.name in clips[0] else {}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """Channels in the size of what the network denoises."""
        if self.enters != "channels":
            return {}
        return {"inputs": {self.name: _fitted(conditioning.inputs[self.name], *videos.shape[1:4])}}

    def present(self, conditioning: Conditioning) -> bool:
        """Where there is a value of its name."""
        return self.name in conditioning.inputs

    def null(self, conditioning: Conditioning, where: Bool[Array, " B"] | None) -> dict[str, Any]:
        """Zeros."""
        return {"inputs": {self.name: nulled(conditioning.inputs[self.name], 0, where)}}

    def of_frames(self, conditioning: Conditioning) -> dict[str, Any]:
        """Channels."""
        own = self.enters == "channels" and self.present(conditioning)
        return {"inputs": {self.name: conditioning.inputs[self.name]}} if own else {}


def _fitted(value: Array, frames: int, height: int, width: int) -> Array:
    return resize(subsample_frames(value, frames), height, width, "area")
