"""Further conditions of one array each, which a network names in its `conditions`.

To add one, subclass `InputCondition` in a file of this room and add it to the list in `conditions/__init__.py`: the
batches of a data set whose clips have that field, training, guidance, planning and `generator(captions, NAME=...)` then
take it. Networks need not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

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
    Way,
    nulled,
)
from vdm_jax.conditions.low_resolution import cut_windows, scales_of
from vdm_jax.configuration import Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import resize, subsample_frames

# What a condition's array is, by the way in which it enters.
FORMS: dict[Way, str] = {"channels": "map", "residuals": "map", "vector": "vector", "features": "tokens",
                         "tokens": "tokens"}


@config
class Input:
    """A further condition that a network takes."""

    name: str  # of a registered `InputCondition`
    width: Width  # channels of its array
    # In which way it enters, of those for an array of its form; None: its own
    enters: Literal["channels", "residuals", "features", "tokens"] | None = None
    # Clips and requests may come without it, and nothing is added then; of residuals only. A plan has clips without it
    optional: bool = False
    # Maps that enter as channels: those of so many frames around each one, the earliest first; beyond the first and the
    # last frame its own (DreamPose: Karras et al. 2023, arXiv 2304.06025: 5)
    window: Size = 1
    channels: Width | None = None  # of a map that enter so, the first ones; None: all
    # Maps that enter as channels do so in [-1, 1] (depth in Stable Diffusion 2 and Make-Your-Video), not in [0, 1]
    signed: bool = False

    def __post_init__(self):
        found = [name for name, condition in CONDITIONS.items() if isinstance(condition, InputCondition)]
        if self.name not in found:
            raise UserError(f"Input.name={self.name!r} is not a registered condition of this kind; permitted: "
                            f"{', '.join(found) or 'none is registered'}")
        permitted = self.condition.ways or [way for way, form in FORMS.items() if form == self.condition.form] or [
            self.condition.enters]
        if self.way not in permitted:
            raise UserError(f"Input.enters={self.enters!r} of {self.name!r}, a {self.condition.form}; permitted: "
                            f"{', '.join(permitted)}, None")
        if self.optional and self.way != "residuals":
            raise UserError(f"Input.optional=True of {self.name!r}, which enters as {self.way}; permitted: residuals")
        if self.signed and self.way != "channels":
            raise UserError(f"Input.signed=True of {self.name!r}, which enters as {self.way}; permitted: channels")
        if (self.window > 1 or self.channels) and (self.way != "channels" or not self.window % 2
                                                   or (self.channels or 0) > self.width):
            raise UserError(f"Input.window={self.window} with channels={self.channels} of {self.name!r} of width="
                            f"{self.width}, which enters as {self.way}; permitted: with channels, an odd window, and "
                            "up to the width", "Input.window")

    @property
    def condition(self) -> InputCondition:
        """What is registered by that name."""
        return CONDITIONS[self.name]

    @property
    def way(self) -> Way:
        """In which it enters this network."""
        return self.enters or self.condition.enters

    @property
    def stacked(self) -> int:
        """Channels with which its maps enter."""
        return self.window * (self.channels or self.width)

    def around(self, maps: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C2"]:
        """Its maps as they enter along the channels."""
        maps, frames = maps[..., : self.channels], np.arange(maps.shape[1])
        maps = 2 * maps - 1 if self.signed else maps
        parts = []
        for offset in range(-(self.window // 2), self.window // 2 + 1):
            place = frames + offset
            inside = (place >= 0) & (place < len(frames))
            parts.append(maps[:, np.where(inside, place, frames)] if offset else maps)
        return jnp.concatenate(parts, axis=-1)


def check_uncut(conditions: Sequence[Input], cut: str) -> None:
    """Raise `UserError` for maps of the frames around each one where a video is made in parts, as `cut` says: a part
    has no maps of the frames beyond it."""
    for entry in conditions:
        if entry.window > 1:
            raise UserError(f"{cut} with Input.window={entry.window} of {entry.name!r}, which asks for maps of frames "
                            "beyond each part; permitted: videos made at once, or Input.window=1", "Input.window")


def map_fields() -> tuple[str, ...]:
    """Fields of clips that are maps of their frames."""
    return tuple(field for condition in CONDITIONS.values()
                 if isinstance(condition, InputCondition) and condition.form == "map"
                 for field in condition.frame_fields)


class InputCondition(Condition):
    """One array per clip, a field of a batch and an argument of a generator by its name: a map [T, H, W, C] in the
    size of the clip, which enters as channels or residuals, a vector [C], or tokens [M, C], which enter as such or as
    features; or, where it says so (`form = "frames"`), a vector of each frame [T, C], of which tokens are made. Where
    it is left out it is zero."""

    parts = ("inputs",)
    nullable = True
    form: ClassVar[str]  # of its array, by `enters` unless it is of frames
    ways: ClassVar[tuple[Way, ...]] = ()  # in which it may enter; (): in all those of its form
    dtype: ClassVar[Any] = jnp.float32  # of the field of a batch
    # The array is made of the clips themselves, whose videos are the field and the argument
    of_video: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if cls.enters not in FORMS:
            raise UserError(f"{cls.__name__}.enters={cls.enters!r} is not valid; permitted: {', '.join(FORMS)}")
        cls.form = cls.__dict__.get("form", FORMS[cls.enters])
        cls.fields = () if cls.of_video else (cls.name,)
        of_frames = cls.form in ("map", "frames")
        cls.frame_fields, cls.frame_parts = (cls.fields, cls.parts) if of_frames else ((), ())

    def taken(self, network: Network) -> bool:
        """Where the network names it."""
        return any(entry.name == self.name for entry in network.conditions)

    def needed(self, network: Network) -> tuple[str, ...]:
        """The array of its name, unless it is optional."""
        return () if self.entry(network).optional else (f"inputs/{self.name}",)

    def entry(self, network: Network) -> Input:
        """What the network says of it."""
        return next(entry for entry in network.conditions if entry.name == self.name)

    def example(self, network: Network, sizes: Sizes, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one clip's array, for frames, height and width as in `grid`."""
        sides = {"map": grid, "vector": (), "tokens": (sizes.tokens,), "frames": grid[:1]}[self.form]
        return *sides, self.entry(network).width

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Channels of the size of what the network denoises, residuals in pixels, tokens as one group."""
        shape = self.example(stage.network, sizes, self.grid(stage, stage.shape[:3]))
        return {f"inputs/{self.name}": ((1, *shape) if self.form == "tokens" else shape, jnp.float32)}

    def grid(self, stage: Stage, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Frames, height and width of its maps, for those of what the network denoises: branches see pixels."""
        frames, height, width = sides
        pixels = stage.latent is not None and self.entry(stage.network).way == "residuals"
        factor = stage.latent.autoencoder.factor if pixels else 1
        return frames, factor * height, factor * width

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Maps of the size of the data set's clips."""
        shape = self.example(stage.network, sizes, sizes.clip)
        return {} if self.of_video or self.entry(stage.network).optional else {self.name: (shape, self.dtype)}

    def value(self, stage: Stage, given: Array) -> Array:
        """What is given of clips `[B, ...]` as the network takes it, maps still in the size of the stage's video."""
        given = jnp.asarray(given, jnp.float32)
        if self.form == "map":
            frames = subsample_frames(given, stage.video.frames)
            return resize(frames, stage.video.height, stage.video.width, "area")
        if self.form == "frames":
            return _of_frames(given, stage.video.frames)
        return given[:, None] if self.form == "tokens" else given

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The field of its name. Raises `UserError` where the batch has none, unless it is optional."""
        field = "video" if self.of_video else self.name
        if field not in batch and self.entry(stage.network).optional:
            return {}
        if field not in batch:
            raise UserError(f"stage {stage.name!r} takes {self.name!r}, but the batch has none; permitted: a data set "
                            f"whose clips have the field {self.name!r}")
        return {"inputs": {self.name: self.value(stage, batch[field])}}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """Maps are cut with the clips' windows; those of appended images are zero."""
        if not self.present(conditioning):
            return {}
        value = conditioning.inputs[self.name]
        if self.form == "frames":
            return {"inputs": {self.name: _of_frames(value, clips.x.shape[1] - clips.images)}}
        if self.form != "map":
            return {}
        if clips.corners is not None:
            scales = jnp.array(scales_of(clips.stage))
            value = cut_windows(value, clips.corners * scales, clips.stage.training.crop)
        frames, *sides = clips.x.shape[1:4]
        value = fitted(value, *self.grid(clips.stage, (frames - clips.images, *sides)))
        return {"inputs": {self.name: jnp.pad(value, ((0, 0), (0, clips.images), (0, 0), (0, 0), (0, 0)))}}

    def arguments(self, network: Network) -> tuple[str, ...]:
        """One of its name."""
        return (self.name,)

    def frame_arguments(self, network: Network) -> tuple[str, ...]:
        """A map, or vectors of frames."""
        return (self.name,) if self.form in ("map", "frames") else ()

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The array that is given for each caption. Raises `UserError` for another shape, and for none unless it is
        optional."""
        given = request.get(self.name)
        if given is None and self.entry(stage.network).optional:
            return {}
        wanted = {"map": "[{0}, frames, height, width, {1}]", "vector": "[{0}, {1}]",
                  "tokens": "[{0}, tokens, {1}]", "frames": "[{0}, frames, {1}]"}[self.form]
        width = 3 if self.of_video else self.entry(stage.network).width
        ends, shape = (len(request.captions), width), np.shape(given)
        if len(shape) != wanted.count(",") + 1 or (shape[0], shape[-1]) != ends:
            raise UserError(f"{self.name} of shape {list(shape)} given for stage {stage.name!r}; permitted: "
                            f"{wanted.format(*ends)}")
        return {"inputs": {self.name: self.value(stage, given)}}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The arrays of the clips, or the clips."""
        field = "video" if self.of_video else self.name
        return {self.name: np.stack([clip[field] for clip in clips])} if field in clips[0] else {}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """Maps in the size of what the network, or its branch, sees; vectors of its frames."""
        if not self.present(conditioning):
            return {}
        if self.form == "frames":
            return {"inputs": {self.name: _of_frames(conditioning.inputs[self.name], videos.shape[1])}}
        if self.form != "map":
            return {}
        grid = self.grid(videos.stage, videos.shape[1:4])
        return {"inputs": {self.name: fitted(conditioning.inputs[self.name], *grid)}}

    def present(self, conditioning: Conditioning) -> bool:
        """Where there is a value of its name."""
        return self.name in conditioning.inputs

    def null(self, conditioning: Conditioning, where: Bool[Array, " B"] | None) -> dict[str, Any]:
        """Zeros."""
        return {"inputs": {self.name: nulled(conditioning.inputs[self.name], 0, where)}}

    def of_frames(self, conditioning: Conditioning) -> dict[str, Any]:
        """Maps, and vectors of frames."""
        own = self.form in ("map", "frames") and self.present(conditioning)
        features = {name: made for name, made in conditioning.features.items() if name == self.name}
        return {"inputs": {self.name: conditioning.inputs[self.name]}, "features": features} if own else {}


def _of_frames(value: Array, frames: int) -> Array:
    """The vectors of every k-th frame, as frames of a video are taken. Raises `UserError` for other numbers."""
    return subsample_frames(value[..., None, None], frames)[..., 0, 0]


def fitted(value: Array, frames: int, height: int, width: int) -> Array:
    """Maps of every k-th frame, in another size."""
    return resize(subsample_frames(value, frames), height, width, "area")


def check_conditions(
    kind: str, conditions: tuple[Input, ...], ways: tuple[Way, ...], latent: bool = False
) -> None:
    """Raise `UserError` for a further condition that is there twice, enters in a way that a network has not, or has an
    option of a `LatentNetwork` where a network is none (`latent`)."""
    names = [entry.name for entry in conditions]
    for entry in conditions:
        for name, usual in (("optional", False), ("window", 1), ("channels", None), ("signed", False)):
            if getattr(entry, name) != usual and not latent:
                raise UserError(f"{kind}.conditions={names}: {entry.name!r} has {name}={getattr(entry, name)}; "
                                f"permitted: {usual}, or a LatentNetwork", f"Input.{name}")
        if names.count(entry.name) > 1 or entry.way not in ways:
            raise UserError(f"{kind}.conditions={names}: {entry.name!r} enters as {entry.way}; permitted: different "
                            f"conditions that enter as {', '.join(ways)} (Input.enters)")


def check_entries(entries: tuple[Input, ...], z: Array, conditioning: Conditioning) -> None:
    """Raise `UserError` when a further condition is of another shape than it enters with."""
    for entry in (entry for entry in entries if entry.condition.present(conditioning)):
        shape, form = conditioning.inputs[entry.name].shape, entry.condition.form
        wanted = {"map": z.shape[:4], "frames": z.shape[:2], "vector": z.shape[:1],
                  "tokens": (*z.shape[:1], 1, "tokens")}[form]
        sizes = (*shape[:2], "tokens", shape[3]) if form == "tokens" and len(shape) == 4 else shape
        if entry.way == "residuals" and len(shape) == 5:  # branches say which sizes of maps they take
            wanted, sizes = (*z.shape[:2], "height", "width"), (*shape[:2], "height", "width", shape[4])
        if sizes != (*wanted, entry.width):
            raise UserError(f"Conditioning.inputs[{entry.name!r}] has shape {shape}; permitted: "
                            f"{(*wanted, entry.width)}")
