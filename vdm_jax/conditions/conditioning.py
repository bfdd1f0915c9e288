"""What a network is conditioned on: the `Conditioning` that it receives, and what each `Condition` says of its part.

A condition is one file of this room. It says which fields of a batch it reads, how its value is made from a training
batch, from a request at sampling time and from nothing, its shapes, how windows cut it and how it enters a network.
`CONDITIONS` lists all of them; batches, example inputs, planned shapes and the arguments of a generator follow from it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from vdm_jax.errors import UserError

# How a condition enters a network: as channels of the noisy video, in its conditioning vector, as tokens of
# cross-attention, as further keys and values of self-attention (features), as residuals of a branch that sees it
# (ControlNet), or as the frames that exist.
Way = Literal["channels", "vector", "tokens", "features", "residuals", "frames"]
Guidance = Literal["prompt", "frames"]  # what guidance leaves out of the unconditional estimate (`Sampling.guided_by`)
Shapes = dict[str, tuple[tuple[int, ...], Any]]  # shape of one example and dtype, by name
Stage = Any  # `stages.stage.Stage`, of a room below
Network = Any  # config of a network


@flax.struct.dataclass
class Conditioning:
    """Optional inputs of a network, each with the batch as its first axis. Absent parts cost nothing.

    Text comes in groups: group 0 is the clip's caption, further groups are the captions of independent images that
    are appended to the clip for joint training.
    """

    tokens: Int[Array, "B G L"] | None = None  # word ids
    embeddings: Float[Array, "B G L C"] | None = None  # instead of ids: embeddings made beforehand
    text_mask: Bool[Array, "B G L"] | None = None  # True at real tokens; a row without any is the null caption
    null_embeddings: Float[Array, "B L C"] | None = None  # the null caption, where it is not a row without any
    null_mask: Bool[Array, "B L"] | None = None  # True at real tokens of that
    # Factors on the attention to the first tokens, of the clip or of each frame (`generation/token_weights.py`)
    token_weights: Float[Array, "B G L"] | None = None
    labels: Int[Array, " B"] | None = None  # class numbers; -1 is the null class
    low_resolution: Float[Array, "B T H W C"] | None = None  # already at the size of the video, in [-1, 1]
    augmentation: Float[Array, " B"] | None = None  # log-SNR of the noise added to low_resolution
    # Conditioning frames, zero elsewhere, or latents of a clip that is grey elsewhere
    conditioning_frames: Float[Array, "B T H W C"] | None = None
    # 1 where given; of latents with a channel for each of their frames (`Conditioned.masks_frames`)
    conditioning_mask: Float[Array, "B T H W M"] | None = None
    image: Float[Array, "B 1 H W C"] | None = None  # latents of the first frame; zeros: none
    history: Float[Array, "B T H W C"] | None = None  # the clean clip, in training with teacher forcing
    # True where a frame exists; a padded one is seen by none and has no loss. Absent: all exist.
    frame_valid: Bool[Array, "B T"] | None = None
    # Features of outside tokens for `External` attention, by name: one group for the clip (g = 1) or one per frame.
    references: dict[str, Float[Array, "B G M C"]] = flax.struct.field(default_factory=dict)
    reference_masks: dict[str, Bool[Array, "B G M"]] = flax.struct.field(default_factory=dict)  # True: may be seen
    scalars: dict[str, Float[Array, " B"]] = flax.struct.field(default_factory=dict)  # e.g. fps
    # Values of further conditions (`Backbone.conditions`), by name: maps [B, T, H, W, C], vectors [B, C] or tokens
    # [B, G, L, C]
    inputs: dict[str, Array] = flax.struct.field(default_factory=dict)
    # What a network has made of them once per video, by level (`Backbone.precomputes`)
    features: dict[str, tuple[Float[Array, "B T _ _ _"], ...]] = flax.struct.field(default_factory=dict)

    def adding(self, parts: Mapping[str, Any]) -> Conditioning:
        """The same with further parts; those that are dicts are joined."""
        return self.replace(**{name: {**getattr(self, name), **part} if isinstance(part, dict) else part
                               for name, part in parts.items()})

    def without(self, guidance: Guidance, where: Bool[Array, " B"] | None = None) -> Conditioning:
        """The same with the null values of all conditions that this guidance leaves out, for all samples or for those
        where `where` is True."""
        for condition in CONDITIONS.values():
            if condition.guidance == guidance and condition.present(self):
                self = self.adding(condition.null(self, where))
        return self

    def without_named(self, names: Collection[str], where: Bool[Array, " B"] | None = None) -> Conditioning:
        """The same with the null values of the conditions of these names, likewise."""
        for name in names:
            if CONDITIONS[name].present(self):
                self = self.adding(CONDITIONS[name].null(self, where))
        return self

    def without_text(self, where: Bool[Array, " B"] | None = None) -> Conditioning:
        """The same with the null caption, the null class, no first frame and the null value of what else enters with
        the prompt, for all samples or for those where `where` is True."""
        return self.without("prompt", where)

    def without_frames(self) -> Conditioning:
        """The same without conditioning frames."""
        return self.without("frames")

    def window(self, start: int | Int[Array, ""], length: int, frames: int) -> Conditioning:
        """The same for `length` frames from `start` on, which may be traced, of a video of `frames`: what belongs to
        single frames is cut, the rest stays."""
        return self._each(lambda a: jax.lax.dynamic_slice_in_dim(a, start, length, axis=1), frames)

    def at_frames(self, numbers: Int[ArrayLike, " N"], frames: int) -> Conditioning:
        """The same for the frames of these numbers, which may be traced, of a video of `frames`."""
        return self._each(lambda a: jnp.take(a, numbers, axis=1), frames)

    def twice(self, frames: int) -> Conditioning:
        """The same for a video of `frames` frames twice after each other."""
        return self._each(lambda a: jnp.concatenate([a, a], axis=1), frames)

    def _each(self, change: Callable[[Array], Array], frames: int) -> Conditioning:
        """The same with what belongs to single frames of so many changed."""
        for condition in CONDITIONS.values():
            self = self.adding(jax.tree.map(
                lambda a: change(a) if a.ndim > 1 and a.shape[1] == frames else a, condition.of_frames(self)))
        return self


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a batch that the data decides, where none is there yet."""

    tokens: int = 1  # of a text that arrives as embeddings, of a reference
    null_text: bool = False  # embeddings come with those of the empty text
    frame_prompts: bool = False  # clips have a caption for each frame
    padded: bool = False  # clips of different lengths are padded
    clip: tuple[int, int, int] = (1, 1, 1)  # frames, height and width of a clip of the data set


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a generator: captions, and values of its further arguments by name."""

    captions: tuple[str, ...]
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.captions:
            raise UserError("captions=[] is not valid; permitted: at least one caption")

    def get(self, name: str) -> Any:
        """An argument; None where it is not given."""
        return self.given.get(name)


Encode = Callable[..., Array]  # `encode(video, key=None, scaled=True)`, latents of a stage's autoencoder


@dataclasses.dataclass(frozen=True)
class TrainingClips:
    """The clips of a training batch, for conditions that are made from them or cut with them."""

    stage: Stage
    x: Float[Array, "B N H W C"]  # target videos or latents, independent images appended
    images: int  # appended to each clip
    valid: Bool[Array, "B T"] | None  # frames that exist; None: all
    low: Float[Array, "B T2 H2 W2 3"] | None  # what the stage's source makes of the clips
    corners: Int[Array, "B 2"] | None  # where the training window of each begins, low-resolution pixels
    key: Key[Array, ""]  # of the batch
    keys: Key[Array, " B"]  # of the samples
    encode: Encode | None  # None: the stage works on pixels
    video: Float[Array, "B T2 H2 W2 3"] | None = None  # the pixels of which x are latents


@dataclasses.dataclass(frozen=True)
class SampledVideos:
    """The videos of a batch that is sampled, likewise."""

    stage: Stage
    keys: Key[Array, " B"]
    low: Float[Array, "B T H W 3"] | None  # of the stage before
    masked_video: Any  # `frame_masks.MaskedVideo` in what the network denoises, or None
    corrupt: bool  # whether `low` is augmented
    shared_noise: bool  # all frames get the same noise
    encode: Encode | None
    picture_noise: Float[Array, "B 1 H W 3"] | None = None  # on the first frame; None: drawn from the keys
    pixels: Any = None  # the masked video of which that of latents is made, or None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(B, T, H, W, C)` of what the network denoises."""
        return (self.keys.shape[0], *self.stage.shape)


class Condition:
    """One thing that a network may be conditioned on. Methods return parts of a `Conditioning` by name.

    Some values come from data or from the user (`of_batch`, `of_request`), others are made from the videos inside the
    compiled functions (`in_training`, `in_sampling`); a condition may do both.
    """

    name: ClassVar[str]
    enters: ClassVar[Way]
    parts: ClassVar[tuple[str, ...]] = ()  # of `Conditioning`
    frame_parts: ClassVar[tuple[str, ...]] = ()  # of these, those that may have one entry per frame
    fields: ClassVar[tuple[str, ...]] = ()  # of a batch that the device reads; `*` stands for any text
    host_fields: ClassVar[tuple[str, ...]] = ()  # of a batch that stay on the host
    frame_fields: ClassVar[tuple[str, ...]] = ()  # of `fields`, those that may have one entry per frame
    guidance: ClassVar[Guidance | None] = None  # which guidance leaves it out; dropout follows that of the prompt
    nullable: ClassVar[bool] = False  # dropout and guidance by name may leave it out too, as all that `guidance` does
    made: ClassVar[bool] = False  # its value is made from the videos, not given

    def taken(self, network: Network) -> bool:
        """Whether a network takes it."""
        raise NotImplementedError

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Of its parts, for one clip without images. Parts of a dict are named `part/key`."""
        raise NotImplementedError

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Of the fields of a batch that it reads, for one clip of the data set."""
        return {}

    def assumed(self, stage: Stage, sizes: Sizes) -> list[str]:
        """What `batch_shapes` had to assume, as notes."""
        return []

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """Parts from the fields of a batch. Raises `UserError` for a field that is missing."""
        return {}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """Parts made from training clips, or cut with them."""
        return {}

    def arguments(self, network: Network) -> tuple[str, ...]:
        """Arguments of a generator that a network with this condition takes."""
        return ()

    def frame_arguments(self, network: Network) -> tuple[str, ...]:
        """Of these, those with one entry per frame, along the second axis."""
        return ()

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """Parts from what is asked of a generator. Raises `UserError` for a value that is missing or does not fit."""
        return {}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The arguments of a generator that ask for videos like these clips of a data set."""
        return {}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """Parts made for videos that are sampled."""
        return {}

    def present(self, conditioning: Conditioning) -> bool:
        """Whether the conditioning has it."""
        return all(getattr(conditioning, name) is not None for name in self.parts)

    def needed(self, network: Network) -> tuple[str, ...]:
        """Parts without which a network that takes it cannot be called. Parts of a dict are named `part/key`."""
        return self.parts

    def null(self, conditioning: Conditioning, where: Bool[Array, " B"] | None) -> dict[str, Any]:
        """Parts without it, for all samples or for those where `where` is True: zeros."""
        return {name: nulled(getattr(conditioning, name), 0, where) for name in self.parts}

    def of_frames(self, conditioning: Conditioning) -> dict[str, Any]:
        """Parts that may have one entry per frame."""
        return {name: getattr(conditioning, name) for name in self.frame_parts}

    def loss_mask(self, network: Network, conditioning: Conditioning) -> Float[Array, "B T ..."] | None:
        """1 where the loss counts, broadcastable to the video; None: everywhere."""
        return None


def nulled(values: Array, null: Any, where: Bool[Array, " B"] | None) -> Array:
    """The values with a null value for all samples, or for those where `where` is True."""
    gone = True if where is None else where.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(gone, jnp.asarray(null, values.dtype), values)


CONDITIONS: dict[str, Condition] = {}  # by name, in the order in which they enter; `conditions/__init__.py` fills it


def register(condition: Condition) -> None:
    """Add a condition. Raises `UserError` for a name that another one has."""
    if condition.name in CONDITIONS:
        raise UserError(f"condition {condition.name!r} is registered already; permitted: another name than "
                        f"{', '.join(CONDITIONS)}")
    CONDITIONS[condition.name] = condition


def conditions_of(network: Network) -> list[Condition]:
    """The conditions that a network takes."""
    return [condition for condition in CONDITIONS.values() if condition.taken(network)]


def nullable(network: Network) -> tuple[str, ...]:
    """Names of the conditions of a network that dropout and guidance by name may leave out."""
    return tuple(c.name for c in conditions_of(network) if c.nullable or c.guidance is not None)


def check_parts(network: Network, conditioning: Conditioning) -> None:
    """Raise `UserError` for a part that a condition of the network needs and that is absent (at trace time)."""
    for part in (part for condition in conditions_of(network) for part in condition.needed(network)):
        name, _, key = part.partition("/")
        value = getattr(conditioning, name)
        if value is None:
            raise UserError(f"Conditioning.{name} is None, but the network takes it")
        if key and key not in value:
            raise UserError(f"Conditioning.{name} has no {key!r}, which the network takes; given: "
                            f"{', '.join(value) or 'none'}")


def claimed(name: str, what: Literal["fields", "host_fields", "frame_fields"]) -> bool:
    """Whether a condition claims a field of a batch."""
    return any(fnmatch.fnmatchcase(name, pattern)
               for condition in CONDITIONS.values() for pattern in getattr(condition, what))


def drop_text(key: Array, conditioning: Conditioning, probability: float) -> Conditioning:
    """Replace each sample's captions and class by the null ones, and what else the prompt brings, with `probability`,
    for classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""
    if probability == 0 or conditioning.without_text() is conditioning:
        return conditioning
    batch = len(jax.tree.leaves(conditioning)[0])
    return conditioning.without_text(jax.random.bernoulli(key, probability, (batch,)))


def drop_named(
    key: Array, conditioning: Conditioning, dropout: Sequence[tuple[Collection[str], float]]
) -> Conditioning:
    """Replace the conditions of some names by their null values: of each sample those of at most one entry (names,
    probability)."""
    if not dropout:
        return conditioning
    drawn, below = jax.random.uniform(key, (len(jax.tree.leaves(conditioning)[0]),)), 0.0
    for names, probability in dropout:
        conditioning = conditioning.without_named(names, (drawn >= below) & (drawn < below + probability))
        below += probability
    return conditioning
