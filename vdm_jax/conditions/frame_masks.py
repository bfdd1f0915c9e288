"""What is known of a video, and how a network is told of it.

A network with `UNet.observed` takes the known frames or pixels, zero elsewhere, and a mask as four more input channels
(Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section 3.3; Lumiere: Bar-Tal et al. 2024, arXiv 2401.12945).
One network then animates a picture, goes on with a clip, fills in frames or pixels, or makes a video from nothing, as
far as its training showed it such cases: each training clip draws one of the stage's observations.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from vdm_jax.configuration import (
    Ascending,
    Count,
    CountOrZero,
    Positive,
    ShareAboveZero,
    SizeOrZero,
    check_value,
    config,
)
from vdm_jax.diffusion.conditional import Error, known_error, low_resolution_error
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import resize


class Known(NamedTuple):
    """A part of a video that is given."""

    video: Float[Array, "B T H W 3"]  # in [-1, 1]; of no matter where it is not known
    mask: Float[Array, "B T H W 1"]  # 1 where it is known, broadcastable to the video
    # For reconstruction guidance also: frames with pixels averaged to some size, and which of them (1) are known so
    low: Float[Array, "B T H2 W2 3"] | None = None
    low_mask: Float[Array, "B T 1 1 1"] | None = None

    def errors(self) -> list[Error]:
        """Squared errors of an estimate where something is known."""
        found = [known_error(self.video, self.mask)]
        if self.low is not None:
            height, width = self.low.shape[2:4]
            found.append(low_resolution_error(
                self.low_mask * self.low, lambda x: self.low_mask * resize(x, height, width, "area")))
        return found


@config
class _Weighted:
    weight: Positive = 1.0  # how often it is drawn, relative to the stage's other observations


@config
class NothingKnown(_Weighted):
    """The video is made from nothing."""

    def mask(self, key: Key[Array, ""], frames: int, height: int, width: int) -> Float[Array, "1 1 1 1"]:
        """1 where the clip is known, broadcastable to `[T, H, W, 1]`."""
        return jnp.zeros((1, 1, 1, 1))


@config
class FramesKnown(_Weighted):
    """Whole frames: the first ones (a picture to animate, a clip to go on with), the last ones, every k-th one (frames
    in between are made), or any of these together."""

    first: SizeOrZero = 0  # frames
    last: SizeOrZero = 0  # frames
    every: CountOrZero = 0  # frames 0, every, 2 every, ...; 0: none

    def __post_init__(self):
        if not max(self.first, self.last, self.every):
            raise UserError(f"FramesKnown(first={self.first}, last={self.last}, every={self.every}) is not valid; "
                            "permitted: at least one above 0")

    def mask(self, key: Key[Array, ""], frames: int, height: int, width: int) -> Float[Array, "T 1 1 1"]:
        """1 where the clip is known, broadcastable to `[T, H, W, 1]`."""
        number = jnp.arange(frames)
        known = (number < self.first) | (number >= frames - self.last)
        known |= number % self.every == 0 if self.every else False
        return known.astype(jnp.float32)[:, None, None, None]


@config
class _Boxed(_Weighted):
    # Smallest and largest height and width of the box, shares of the frame's
    side: Annotated[tuple[ShareAboveZero, ShareAboveZero], Ascending()] = (0.25, 0.75)

    def box(self, key: Key[Array, ""], height: int, width: int) -> Bool[Array, "1 H W 1"]:
        """True in a box whose sides and place are uniform; at least one pixel."""
        sides, corner = jax.random.uniform(key, (2, 2))
        sides = self.side[0] + (self.side[1] - self.side[0]) * sides

        def inside(size: int, side: Array, place: Array) -> Bool[Array, " size"]:
            length = jnp.maximum(jnp.round(side * size), 1)
            start = jnp.floor(place * (size - length + 1))
            return (jnp.arange(size) >= start) & (jnp.arange(size) < start + length)

        rows, columns = inside(height, sides[0], corner[0]), inside(width, sides[1], corner[1])
        return (rows[:, None] & columns)[None, :, :, None]


@config
class BoxKnown(_Boxed):
    """In all frames the same: what lies outside a random box (inpainting), or what lies inside (outpainting)."""

    inside: bool = False

    def mask(self, key: Key[Array, ""], frames: int, height: int, width: int) -> Float[Array, "1 H W 1"]:
        """1 where the clip is known, broadcastable to `[T, H, W, 1]`."""
        box = self.box(key, height, width)
        return (box if self.inside else ~box).astype(jnp.float32)


@config
class StillKnown(_Boxed):
    """The first frame, and in all others the same still picture outside a random box, in which alone something moves
    (cinemagraphs). What the video is told to be there is the first frame's, not its own."""

    def mask(self, key: Key[Array, ""], frames: int, height: int, width: int) -> Float[Array, "T H W 1"]:
        """1 where the picture is known, broadcastable to `[T, H, W, 1]`."""
        first = (jnp.arange(frames) == 0)[:, None, None, None]
        return (first | ~self.box(key, height, width)).astype(jnp.float32)


Observation = NothingKnown | FramesKnown | BoxKnown | StillKnown


def draw_known(
    observations: tuple[Observation, ...], x: Float[Array, "B T H W C"], keys: Key[Array, " B"],
    valid: Bool[Array, "B T"] | None = None,
) -> Known:
    """What of training clips `x` is known: one observation per clip, drawn by weight, from its own key alone.

    Of a frame that does not exist (`valid` False) nothing is known.
    """
    weights = jnp.array([observation.weight for observation in observations])
    still = jnp.array([isinstance(observation, StillKnown) for observation in observations])
    shape = (*x.shape[1:-1], 1)

    def draw(key: Array) -> tuple[Array, Array]:
        task_key, *keys = jax.random.split(key, 1 + len(observations))
        task = jax.random.categorical(task_key, jnp.log(weights))
        masks = [jnp.broadcast_to(observation.mask(key, *shape[:3]), shape)
                 for observation, key in zip(observations, keys, strict=True)]
        return jnp.stack(masks)[task], still[task]

    mask, is_still = jax.vmap(draw)(keys)
    if valid is not None:
        mask = mask * valid[:, :, None, None, None]
    if any(isinstance(observation, StillKnown) for observation in observations):
        x = jnp.where(is_still[:, None, None, None, None], x[:, :1], x)
    return Known(x, mask)


def key_frames_known(video: Float[Array, "B T H W 3"], every: int) -> Known:
    """Videos of which frames 0, every, 2 every, ... are given; the last given one is the last of all."""
    batch, given, height, width, _ = video.shape
    frames = (given - 1) * every + 1
    mask = (jnp.arange(frames) % every == 0).astype(jnp.float32)[None, :, None, None, None]
    whole = jnp.zeros((batch, frames, height, width, 3), video.dtype).at[:, ::every].set(video)
    return Known(whole, jnp.broadcast_to(mask, (batch, frames, 1, 1, 1)))


def first_frame_known(pictures: Float[Array, "B H W 3"], frames: int) -> Known:
    """Videos of which the first frame is given, as pictures of the videos' size in [-1, 1]."""
    mask = (jnp.arange(frames) == 0).astype(jnp.float32)[None, :, None, None, None]
    video = jnp.broadcast_to(pictures[:, None], (len(pictures), frames, *pictures.shape[1:]))
    return Known(video, jnp.broadcast_to(mask, (len(pictures), frames, 1, 1, 1)))


def low_resolution_known(
    low: Float[ArrayLike, "B N H2 W2 3"], every: int, shape: tuple[int, int, int, int], start: int = 0,
    known: Known | None = None,
) -> Known:
    """What a low-resolution video in [-1, 1], whose frames are every so many frames of a larger one, says of the part
    of that one that begins at frame `start` and has `shape` (T, H, W, 3); added to what is known of it besides. Ho et
    al. 2022, arXiv 2204.03458, section 3.1. Raises `UserError` for pixels that do not divide the video's."""
    low = np.asarray(low, np.float32)
    for name, size, part in zip(("height", "width"), shape[1:3], low.shape[2:4], strict=True):
        if size % part:
            raise UserError(f"low-resolution video of {name} {part} for {name} {size}; permitted: divisors of {size}")
    check_value(every, Count, "every")
    numbers = start + np.arange(shape[0])
    there = (numbers % every == 0) & (numbers // every < low.shape[1])
    frames = low[:, np.minimum(numbers // every, low.shape[1] - 1)]
    mask = np.broadcast_to(there.astype(np.float32)[None, :, None, None, None], (len(low), shape[0], 1, 1, 1))
    if known is None:
        known = Known(np.zeros((len(low), *shape), np.float32), np.zeros((len(low), 1, 1, 1, 1), np.float32))
    return known._replace(low=frames, low_mask=mask)
