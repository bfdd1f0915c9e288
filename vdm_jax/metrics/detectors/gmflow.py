"""GMFlow, optical flow by global matching (Xu et al. 2022, arXiv 2111.13680), as the network of one scale.

A convolutional encoder makes features of both frames at an eighth of their size. Six layers of attention, each within
the frame and then to the other one, refine them in windows that every second layer shifts (Liu et al. 2021, arXiv
2103.14030; section 3.2). Each feature is then compared with all of the other frame; the mean of the places, weighted by
a softmax of the products, is where it is (section 3.1). Attention of a frame to itself carries the flow to what is
hidden (section 3.3), and a convex combination of neighbours upsamples it (Teed & Deng 2020, arXiv 2003.12039).

Parameters have the published names, with '_' before numbers in place of '.'. As in the published code the keys of the
last attention are made of its queries, not of the features.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.sinusoids import sinusoids

WIDTHS = (64, 96, 128)  # channels of the encoder's three levels
CHANNELS = 128  # of features
HIDDEN = 1024  # of the feed-forward, four times a feature and its message
LAYERS = 6
SPLITS = 2  # windows along each side
FACTOR = 8  # pixels of a side of a feature
MULTIPLE = FACTOR * SPLITS  # of which both sides of a frame are one
_UPSAMPLER = 256  # channels
_APART = -100.0  # added to products of features that a shifted window has from opposite borders
_EPSILON = 1e-5  # of variances
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures in [0, 1]


def normalised(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Each channel of each picture with mean 0 and variance 1."""
    return (x - x.mean((1, 2), keepdims=True)) / jnp.sqrt(x.var((1, 2), keepdims=True) + _EPSILON)


class Residual(nn.Module):
    """Two convolutions, and what they are added to."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 O"]:
        y = nn.Conv(self.channels, (3, 3), self.stride, 1, use_bias=False, name="conv1")(x)
        y = nn.Conv(self.channels, (3, 3), 1, 1, use_bias=False, name="conv2")(nn.relu(normalised(y)))
        if y.shape != x.shape:
            x = normalised(nn.Conv(self.channels, (1, 1), self.stride, 0, name="downsample_0")(x))
        return nn.relu(x + nn.relu(normalised(y)))


class Encoder(nn.Module):
    """Features of normalised pictures."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B H2 W2 C"]:
        x = nn.Conv(WIDTHS[0], (7, 7), 2, 3, use_bias=False, name="conv1")(x)
        x = nn.relu(normalised(x))
        for level, width in enumerate(WIDTHS):
            x = Residual(width, 1 if level == 0 else 2, name=f"layer{level + 1}_0")(x)
            x = Residual(width, name=f"layer{level + 1}_1")(x)
        return nn.Conv(CHANNELS, (1, 1), name="conv2")(x)


class AttentionLayer(nn.Module):
    """Attention of features to others in the same windows, added to them."""

    shifted: bool
    feed_forward: bool  # of each feature and its message

    @nn.compact
    def __call__(
        self, source: Float[Array, "B H W C"], target: Float[Array, "B H W C"]
    ) -> Float[Array, "B H W C"]:
        def dense(name: str, x: Array, channels: int = CHANNELS) -> Array:
            return nn.Dense(channels, use_bias=False, name=name)(x)

        projected = dense("q_proj", source), dense("k_proj", target), dense("v_proj", target)
        message = nn.LayerNorm(_EPSILON, name="norm1")(dense("merge", in_windows(*projected, self.shifted)))
        if self.feed_forward:
            hidden = nn.gelu(dense("mlp_0", jnp.concatenate([source, message], -1), HIDDEN), approximate=False)
            message = nn.LayerNorm(_EPSILON, name="norm2")(dense("mlp_2", hidden))
        return source + message


class Block(nn.Module):
    """Attention within each frame, then to the other one as it was before."""

    shifted: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        inside = AttentionLayer(self.shifted, False, name="self_attn")(x, x)
        return AttentionLayer(self.shifted, True, name="cross_attn_ffn")(inside, exchanged(x))


class Transformer(nn.Module):
    """Features of the first frames, followed by those of the other ones, that see each other."""

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        for layer in range(LAYERS):
            x = Block(layer % 2 == 1, name=f"layers_{layer}")(x)
        return x


class Propagation(nn.Module):
    """Flow as an average over the frame, by how alike the features are."""

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], flow: Float[Array, "N H W 2"]) -> Float[Array, "N H W 2"]:
        queries = nn.Dense(CHANNELS, name="q_proj")(x)
        keys = nn.Dense(CHANNELS, name="k_proj")(queries)
        return _averaged(_products(queries, keys), flow)


class GMFlow(nn.Module):
    """Flow both ways of frames whose sides are multiples of 16."""

    @nn.compact
    def __call__(
        self, one: Float[Array, "B H W 3"], other: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B H W 2"], Float[Array, "B H W 2"]]:
        """Where each pixel of a frame is in the other one, and the reverse: displacements (x, y) in pixels. Frames are
        in [0, 255]."""
        frames = (jnp.concatenate([one, other]) / 255 - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
        x = Encoder(name="backbone")(frames)
        x = Transformer(name="transformer")(x + positions(*x.shape[1:3]))
        flow = jnp.concatenate(matched(*jnp.split(x, 2)))
        flow = Propagation(name="feature_flow_attn")(x, flow)
        logits = nn.Conv(_UPSAMPLER, (3, 3), 1, 1, name="upsampler_0")(jnp.concatenate([flow, x], -1))
        logits = nn.Conv(9 * FACTOR**2, (1, 1), name="upsampler_2")(nn.relu(logits))
        forward, backward = jnp.split(upsampled(flow, logits), 2)
        return forward, backward


def exchanged(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """The other ones first, followed by the first ones."""
    return jnp.concatenate(jnp.split(x, 2)[::-1])


def positions(height: int, width: int) -> Float[np.ndarray, "H W C"]:
    """What is added to features: sines and cosines of row and column in the window, which goes from 0 to 2 pi."""
    rows, columns = (
        sinusoids(2 * math.pi * np.arange(1, size + 1) / (size + 1e-6), CHANNELS // 2, order="interleaved",
                  endpoint=False) for size in (height // SPLITS, width // SPLITS))
    both = np.concatenate(np.broadcast_arrays(rows[:, None], columns[None]), -1)
    return np.tile(both, (SPLITS, SPLITS, 1))


def in_windows(
    queries: Float[Array, "B H W C"], keys: Float[Array, "B H W C"], values: Float[Array, "B H W C"], shifted: bool
) -> Float[Array, "B H W C"]:
    """Attention within each of 2x2 windows. `shifted` ones lie half a window further, those at the end go on at the
    beginning, and what comes from opposite borders does not see each other."""
    height, width = queries.shape[1:3]
    shift = (height // SPLITS // 2, width // SPLITS // 2) if shifted else (0, 0)

    def cut(x: Array) -> Array:
        x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        return rearrange(x, "b (m h) (n w) c -> b (m n) (h w) c", m=SPLITS, n=SPLITS)

    queries, keys, values = (cut(x) for x in (queries, keys, values))
    scores = jnp.einsum("bnqc,bnkc->bnqk", queries, keys) / math.sqrt(queries.shape[-1])
    if shifted:
        border = 2 * (np.arange(height)[:, None] >= height - shift[0]) + (np.arange(width) >= width - shift[1])
        border = rearrange(border, "(m h) (n w) -> (m n) (h w)", m=SPLITS, n=SPLITS)
        scores += _APART * (border[:, :, None] != border[:, None])
    found = jnp.einsum("bnqk,bnkc->bnqc", jax.nn.softmax(scores), values)
    found = rearrange(found, "b (m n) (h w) c -> b (m h) (n w) c", m=SPLITS, h=height // SPLITS)
    return jnp.roll(found, shift, (1, 2))


def matched(
    one: Float[Array, "B H W C"], other: Float[Array, "B H W C"]
) -> tuple[Float[Array, "B H W 2"], Float[Array, "B H W 2"]]:
    """Global matching: flow, in features, from one frame to the other and back."""
    rows, columns = np.mgrid[:one.shape[1], :one.shape[2]]
    places = jnp.broadcast_to(jnp.asarray(np.stack([columns, rows], -1), one.dtype), (len(one), *rows.shape, 2))
    scores = _products(one, other)
    return _averaged(scores, places) - places, _averaged(scores.swapaxes(1, 2), places) - places


def _products(queries: Float[Array, "B H W C"], keys: Float[Array, "B H W C"]) -> Float[Array, "B N N"]:
    queries, keys = (rearrange(x, "b h w c -> b (h w) c") for x in (queries, keys))
    return jnp.einsum("bqc,bkc->bqk", queries, keys) / math.sqrt(queries.shape[-1])


def _averaged(scores: Float[Array, "B N N"], values: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    mean = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(scores), rearrange(values, "b h w c -> b (h w) c"))
    return mean.reshape(values.shape)


def upsampled(flow: Float[Array, "B H W 2"], logits: Float[Array, "B H W O"]) -> Float[Array, "B H2 W2 2"]:
    """Flow in pixels of frames eight times as large: that of each pixel is a convex combination, by these logits, of
    that of the nine features around, which is 0 beyond the borders."""
    height, width = flow.shape[1:3]
    weights = jax.nn.softmax(rearrange(logits, "b h w (n i j) -> b h w n i j", i=FACTOR, j=FACTOR), axis=3)
    padded = jnp.pad(FACTOR * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = jnp.stack([padded[:, row:row + height, column:column + width] for row in range(3) for column in range(3)],
                       axis=3)
    return rearrange(jnp.einsum("bhwnij,bhwnc->bhwijc", weights, around), "b h w i j c -> b (h i) (w j) c")


@jax.jit
def flows(
    params: Mapping[str, Any], one: Float[Array, "B H W 3"], other: Float[Array, "B H W 3"]
) -> tuple[Float[Array, "B H W 2"], Float[Array, "B H W 2"]]:
    """Flow of frames of any size, both ways: padded on all sides by their borders to multiples of 16, as the authors
    do. Arithmetic is float32 at the highest precision of the device; it is compiled once for each size."""
    height, width = one.shape[1:3]
    short = (-height % MULTIPLE, -width % MULTIPLE)
    top, left = (size // 2 for size in short)
    around = ((0, 0), (top, short[0] - top), (left, short[1] - left), (0, 0))
    with jax.default_matmul_precision("highest"):
        found = GMFlow().apply({"params": params}, *(jnp.pad(x, around, "edge") for x in (one, other)))
    forward, backward = (flow[:, top:top + height, left:left + width] for flow in found)
    return forward, backward


def from_published(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters from the tensors of the authors' files, by their names there.

    Raises `UserError` naming the first tensor that is missing, too many, or of another shape or type.
    """
    shapes = expected()
    params: dict[str, Any] = {}
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            there = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
            raise UserError(f"tensor {name!r} of GMFlow's weights {there}; permitted: {shape}")
        if not jnp.issubdtype(arrays[name].dtype, jnp.floating) or not np.isfinite(arrays[name]).all():
            raise UserError(f"tensor {name!r} of GMFlow's weights, {arrays[name].dtype}, has what is no finite number; "
                            "permitted: finite floats")
        path, array = _path(name, len(shape)), np.asarray(arrays[name], np.float32)
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        place = functools.reduce(lambda tree, part: tree.setdefault(part, {}), path[:-1], params)
        place[path[-1]] = np.ascontiguousarray(array.transpose(axes))
    if left := sorted(set(arrays) - set(shapes)):
        raise UserError(f"tensor {left[0]!r} is not part of GMFlow of one scale; permitted: {len(shapes)} known ones")
    return params


@functools.cache
def expected() -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the published tensors."""
    frames = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(lambda x: GMFlow().init(jax.random.key(0), x, x), frames)["params"]
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *modules, kind = (part.key for part in path)
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        name = re.sub(r"_(\d)", r".\1", ".".join(modules))
        found[f"{name}.{'bias' if kind == 'bias' else 'weight'}"] = tuple(leaf.shape[axis] for axis in axes)
    return found


def _path(name: str, axes: int) -> list[str]:
    """Where a published tensor of so many axes is among the parameters."""
    *modules, kind = name.split(".")
    kind = "bias" if kind == "bias" else "kernel" if axes > 1 else "scale"
    return [*re.sub(r"\.(\d)", r"_\1", ".".join(modules)).split("."), kind]
