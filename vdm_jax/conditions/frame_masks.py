"""Conditioning frames: masked videos, and the masking strategies of training.

A network with `UNet.conditioning_frames` takes the conditioning frames or pixels, zero elsewhere, and a mask as four
more input channels (Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section 3.3; Lumiere: Bar-Tal et al. 2024,
arXiv 2401.12945). One network then animates a picture, goes on with a clip, fills in frames or pixels, or makes a video
from nothing, as far as its training showed it such cases: each training clip draws one of the stage's masking
strategies.
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
from vdm_jax.diffusion.conditional import Error, low_resolution_error, masked_error
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import resize


class MaskedVideo(NamedTuple):
    """A part of a video that is given."""

    video: Float[Array, "B T H W 3"]  # in [-1, 1]; of no matter where the mask is 0
    mask: Float[Array, "B T H W 1"]  # 1 where it is given, broadcastable to the video
    # For reconstruction guidance also: frames with pixels averaged to some size, and which of them (1) are given so
    low: Float[Array, "B T H2 W2 3"] | None = None
    low_mask: Float[Array, "B T 1 1 1"] | None = None

    def errors(self) -> list[Error]:
        """Squared errors of an estimate where something is given."""
        found = [masked_error(self.video, self.mask)]
        if self.low is not None:
            height, width = self.low.shape[2:4]
            found.append(low_resolution_error(
                self.low_mask * self.low, lambda x: self.low_mask * resize(x, height, width, "area")))
        return found


@config
class _Weighted:
    weight: Positive = 1.0  # how often it is drawn, relative to the stage's other strategies


@config
class NoMask(_Weighted):
    """The video is made from nothing."""

    def mask(self, key: Key[Array, ""], frames: int, height: int, width: int) -> Float[Array, "1 1 1 1"]:
        """1 where the clip is given, broadcastable to `[T, H, W, 1]`."""
        return jnp.zeros((1, 1, 1, 1))


@config
class FrameMask(_Weighted):
    """Whole frames: the first ones (a picture to animate, a clip to go on with), the last ones, every k-th one (frames
    in between are made), or any of these together."""

    first: SizeOrZero = 0  # frames
    last: SizeOrZero = 0  # frames
    every: CountOrZero = 0  # frames 0, every, 2 every, ...; 0: none

    def __post_init__(self):
        if not max(self.first, self.last, self.every):
            raise UserError(f"FrameMask(first={self.first}, last={self.last}, every={self.every}) is not valid; "
                            "permitted: at least one above 0")

    def mask(self, key: Key[Array, ""], frames: int, height: int, width: int) -> Float[Array, "T 1 1 1"]:
        """1 where the clip is given, broadcastable to `[T, H, W, 1]`."""
        number = jnp.arange(frames)
        given = (number < self.first) | (number >= frames - self.last)
        given |= number % self.every == 0 if self.every else False
        return given.astype(jnp.float32)[:, None, None, None]


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
class BoxMask(_Boxed):
    """In all frames the same: what lies outside a random box (inpainting), or what lies inside (outpainting)."""

    inside: bool = False

    def mask(self, key: Key[Array, ""], frames: int, height: int, width: int) -> Float[Array, "1 H W 1"]:
        """1 where the clip is given, broadcastable to `[T, H, W, 1]`."""
        box = self.box(key, height, width)
        return (box if self.inside else ~box).astype(jnp.float32)


@config
class CinemagraphMask(_Boxed):
    """The first frame, and in all others the same still picture outside a random box, in which alone something moves
    (cinemagraphs). The conditioning there is the first frame's, not its own."""

    def mask(self, key: Key[Array, ""], frames: int, height: int, width: int) -> Float[Array, "T H W 1"]:
        """1 where the picture is given, broadcastable to `[T, H, W, 1]`."""
        first = (jnp.arange(frames) == 0)[:, None, None, None]
        return (first | ~self.box(key, height, width)).astype(jnp.float32)


MaskingStrategy = NoMask | FrameMask | BoxMask | CinemagraphMask


def draw_masked_video(
    masking: tuple[MaskingStrategy, ...], x: Float[Array, "B T H W C"], keys: Key[Array, " B"],
    valid: Bool[Array, "B T"] | None = None,
) -> MaskedVideo:
    """Training clips `x` as masked videos: one masking strategy per clip, drawn by weight, from its own key alone.

    Of a frame that does not exist (`valid` False) nothing is given.
    """
    weights = jnp.array([strategy.weight for strategy in masking])
    still = jnp.array([isinstance(strategy, CinemagraphMask) for strategy in masking])
    shape = (*x.shape[1:-1], 1)

    def draw(key: Array) -> tuple[Array, Array]:
        task_key, *keys = jax.random.split(key, 1 + len(masking))
        task = jax.random.categorical(task_key, jnp.log(weights))
        masks = [jnp.broadcast_to(strategy.mask(key, *shape[:3]), shape)
                 for strategy, key in zip(masking, keys, strict=True)]
        return jnp.stack(masks)[task], still[task]

    mask, is_still = jax.vmap(draw)(keys)
    if valid is not None:
        mask = mask * valid[:, :, None, None, None]
    if any(isinstance(strategy, CinemagraphMask) for strategy in masking):
        x = jnp.where(is_still[:, None, None, None, None], x[:, :1], x)
    return MaskedVideo(x, mask)


def mask_of_latents(
    mask: Float[Array, "B T H W 1"], shape: tuple[int, int, int], factor: int
) -> Float[Array, "B T2 H2 W2 F"]:
    """The mask of a clip as that of its latents, of frames, height and width `shape`: a channel for each of the
    `factor` frames that a latent one stands for, 1 where all pixels are given. Of a causal autoencoder the first frame
    has a latent of its own, and all channels there."""
    (frames, height, width), (rows, columns) = shape, mask.shape[2:4]
    before = frames * factor - mask.shape[1]
    mask = jnp.pad(mask, ((0, 0), (before, 0), (0, 0), (0, 0), (0, 0)), mode="edge")
    blocks = mask.reshape(len(mask), frames, factor, height, rows // height, width, columns // width)
    return jnp.moveaxis(blocks.min((4, 6)), 2, -1)


def masked_key_frames(video: Float[Array, "B T H W 3"], every: int) -> MaskedVideo:
    """Videos of which frames 0, every, 2 every, ... are given; the last given one is the last of all."""
    batch, given, height, width, _ = video.shape
    frames = (given - 1) * every + 1
    mask = (jnp.arange(frames) % every == 0).astype(jnp.float32)[None, :, None, None, None]
    whole = jnp.zeros((batch, frames, height, width, 3), video.dtype).at[:, ::every].set(video)
    return MaskedVideo(whole, jnp.broadcast_to(mask, (batch, frames, 1, 1, 1)))


def masked_first_frame(pictures: Float[Array, "B H W 3"], frames: int) -> MaskedVideo:
    """Videos of which the first frame is given, as pictures of the videos' size in [-1, 1]."""
    mask = (jnp.arange(frames) == 0).astype(jnp.float32)[None, :, None, None, None]
    video = jnp.broadcast_to(pictures[:, None], (len(pictures), frames, *pictures.shape[1:]))
    return MaskedVideo(video, jnp.broadcast_to(mask, (len(pictures), frames, 1, 1, 1)))


def masked_low_resolution(
    low: Float[ArrayLike, "B N H2 W2 3"], every: int, shape: tuple[int, int, int, int], start: int = 0,
    masked_video: MaskedVideo | None = None, stride: int = 1,
) -> MaskedVideo:
    """What a low-resolution video in [-1, 1], whose frames are every so many frames of a larger one, says of the part
    of that one that begins at frame `start`, has `shape` (T, H, W, 3) and every `stride`-th frame; added to what is
    given of it. Ho et al. 2022, arXiv 2204.03458, section 3.1. Raises `UserError` for pixels that do not divide the
    video's."""
    low = np.asarray(low, np.float32)
    for name, size, part in zip(("height", "width"), shape[1:3], low.shape[2:4], strict=True):
        if size % part:
            raise UserError(f"low-resolution video of {name} {part} for {name} {size}; permitted: divisors of {size}")
    check_value(every, Count, "every")
    numbers = start + stride * np.arange(shape[0])
    there = (numbers % every == 0) & (numbers // every < low.shape[1])
    frames = low[:, np.minimum(numbers // every, low.shape[1] - 1)]
    mask = np.broadcast_to(there.astype(np.float32)[None, :, None, None, None], (len(low), shape[0], 1, 1, 1))
    if masked_video is None:
        masked_video = MaskedVideo(np.zeros((len(low), *shape), np.float32),
                                   np.zeros((len(low), 1, 1, 1, 1), np.float32))
    return masked_video._replace(low=frames, low_mask=mask)
