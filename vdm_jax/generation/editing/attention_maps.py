"""Attention of one estimate of a network in the place of another's (FateZero: Qi et al. 2023, arXiv 2303.09535).

Maps of attention are functions of queries and keys: with those of one estimate and the values of another, attention has
the maps of the first, by every kernel. A mask with one value for a query chooses between whole rows of two maps, and so
between the two results: `m (A v) + (1 - m) (A' v) = (m A + (1 - m) A') v`. No map of self-attention is ever made; of
cross-attention those of the edited words are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import ExtraKeys, attend
from vdm_jax.diffusion.arrays import Denoiser, Level, Video
from vdm_jax.networks.blocks.attention import Attention

POOLED = 3  # positions: side of the window whose largest value a map of words has, as published
COARSE = 4  # latents on a side of what is a position of the maps of words: 16 x 16 of the published 64 x 64
OTHERS = ("control_net", "reference_net", "image_projection")  # networks next to the main one


class Queries(NamedTuple):
    """What the maps of a cross-attention are made of."""

    q: Float[Array, "B T H W K D"]
    k: Float[Array, "B G M K D"]
    mask: Bool[Array, "B G M"] | None


class Kept(NamedTuple):
    """Attention of an estimate, by layer: in the trace where it is made."""

    own: dict[str, tuple[tuple[Array, Array, Array], dict[str, Any]]]  # arguments of self-attention other than temporal
    cross: dict[str, Queries]


class Blend(NamedTuple):
    """How an estimate's attention is changed."""

    edited: Callable[[tuple[int, ...]], Bool[Array, "B T H W"]]  # positions of a layer of frames, height and width
    own: Bool[Array, ""]  # whether self-attention is the kept one, but for queries that are edited
    cross: Bool[Array, ""]  # whether cross-attention has the kept maps
    weights: Sequence[float]  # factors on the first tokens
    estimates: int  # of a video, neighbours in the batch, the first of which is changed


def in_main_network(module: nn.Module) -> bool:
    """Whether a module is of the network that denoises, and not of its encoder of captions or a network next to it."""
    return not any(part == "text" or part.startswith(OTHERS) for part in module.path)


def kept_attention(denoise: Denoiser, z: Video, logsnr: Level, most: int) -> Kept:
    """The attention of an estimate: cross-attention, and self-attention but for that of single positions over time, of
    layers with up to so many tokens a frame."""
    kept = Kept({}, {})

    def intercept(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        found, module = call(*arguments, **options), context.module
        if not isinstance(module, Attention) or not in_main_network(module):
            return found
        name = ".".join(module.path)
        if context.method_name == "attending" and module.pattern.layout != "positions":
            if math.prod(_size(module, arguments[0])[1:]) <= most:
                kept.own[name] = arguments, options
        elif context.method_name == "crossing":
            q, outside = found
            if math.prod(q.shape[2:4]) <= most:
                kept.cross[name] = Queries(q, outside.k, outside.mask)
        return found

    with nn.intercept_methods(intercept):
        denoise(z, logsnr)
    return kept


def with_kept(denoise: Denoiser, kept: Kept, blend: Blend) -> Denoiser:
    """A denoiser of a network like that of the kept attention, which is changed by it."""

    def intercept(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        found, name = call(*arguments, **options), ".".join(context.module.path)
        if context.method_name == "attending" and name in kept.own:
            return blended(found, arguments[2], options, kept.own[name], _mask(context.module, found, blend), blend)
        if context.method_name == "crossing" and name in kept.cross:
            return crossed(*found, kept.cross[name], blend)
        return found

    def changed(z: Video, logsnr: Level) -> Video:
        with nn.intercept_methods(intercept):
            return denoise(z, logsnr)

    return changed


def blended(
    found: Float[Array, "N _ _ _ K D"], v: Float[Array, "N _ _ _ K D"], options: Mapping[str, Any],
    kept: tuple[tuple[Array, Array, Array], dict[str, Any]], edited: Bool[Array, "B _ _ _"], blend: Blend,
) -> Float[Array, "N _ _ _ K D"]:
    """What a self-attention found, of each video's first estimate with the kept maps and its own values where queries
    are not edited."""
    (q, k, _), more = kept
    if (extra := more.get("extra_keys")) is not None:
        more = more | {"extra_keys": ExtraKeys(extra.k, options["extra_keys"].v[::blend.estimates], extra.mask)}
    given, own = attend(q, k, v[::blend.estimates], **more), found[::blend.estimates]
    chosen = jnp.where(edited[..., None, None] | ~blend.own, own, given.astype(own.dtype))
    return found.at[::blend.estimates].set(chosen)


def crossed(
    q: Float[Array, "N *thw K D"], outside: ExtraKeys, kept: Queries, blend: Blend
) -> tuple[Float[Array, "N *thw K D"], ExtraKeys]:
    """Queries, keys and values of cross-attention, of each video's first estimate with the kept maps, and with values
    of tokens by their weights."""

    def changed(own: Array, given: Array) -> Array:
        rows = own[::blend.estimates]
        return own.at[::blend.estimates].set(jnp.where(blend.cross, given.astype(rows.dtype), rows))

    scale = jnp.ones(outside.v.shape[2]).at[: len(blend.weights)].set(jnp.array(blend.weights))
    values = outside.v.at[::blend.estimates].multiply(scale[:, None, None].astype(outside.v.dtype))
    mask = None if outside.mask is None else changed(outside.mask, kept.mask)
    return changed(q, kept.q), ExtraKeys(changed(outside.k, kept.k), values, mask)


def word_map(
    cross: Mapping[str, Queries], places: tuple[int, ...], size: tuple[int, int, int]
) -> Float[Array, "B T H W"]:
    """How much the positions of a video attend to some tokens: the sum over these of cross-attention, its mean over
    heads and layers, in the largest of each position and those around. The layers are those of the number of positions
    that is nearest to a sixteenth of that of a latent of `size` (frames, height, width), as published."""
    wanted = size[1] * size[2] / COARSE**2
    chosen = min({kept.q.shape[2:4] for kept in cross.values()},
                 key=lambda each: (abs(math.log(math.prod(each) / wanted)), each))
    total, heads = 0.0, 0
    for kept in cross.values():
        if kept.q.shape[2:4] == chosen:
            total = total + nearest(_attended(kept, places), (size[0], *chosen))
            heads += kept.q.shape[4]
    window = (1, 1, POOLED, POOLED)
    return jax.lax.reduce_window(total / heads, -jnp.inf, jax.lax.max, window, (1,) * 4, "SAME")


def _attended(kept: Queries, places: tuple[int, ...]) -> Float[Array, "B T H W"]:
    """The sum over heads and some tokens of the maps of a layer."""
    q, k = kept.q.astype(jnp.float32), kept.k.astype(jnp.float32)
    frames = (*q.shape[:2], *k.shape[2:])
    logits = jnp.einsum("bthwkd,btmkd->bthwkm", q, jnp.broadcast_to(k, frames)) / math.sqrt(q.shape[-1])
    if kept.mask is not None:
        seen = jnp.broadcast_to(kept.mask, frames[:3])
        logits = jnp.where(seen[:, :, None, None, None], logits, -1e30)
    return jax.nn.softmax(logits, axis=-1)[..., np.array(places, int)].sum((-1, -2))


def edited_positions(
    found: Float[Array, "B T H W"], size: tuple[int, int, int], threshold: float
) -> Bool[Array, "B T2 H2 W2"]:
    """Where a map of words, in another size, is above this share of its largest value in a frame."""
    found = nearest(found, size)
    return found > threshold * found.max((2, 3), keepdims=True)


def nearest(a: Float[Array, "B T H W"], size: tuple[int, int, int]) -> Float[Array, "B T2 H2 W2"]:
    """In another size: each position has the value of the one that it is in."""
    for axis, count in enumerate(size, 1):
        a = jnp.take(a, np.arange(count) * a.shape[axis] // count, axis=axis)
    return a


def _size(module: Attention, q: Array) -> tuple[int, ...]:
    """Frames, height and width of a layer."""
    return q.shape[1:4] if module.sharded_axis != "width" else q.shape[3:0:-1]


def _mask(module: Attention, q: Array, blend: Blend) -> Bool[Array, "B _ _ _"]:
    """The edited positions in the order of a layer's tokens."""
    mask = blend.edited(_size(module, q))
    return mask if module.sharded_axis != "width" else mask.swapaxes(1, 3)
