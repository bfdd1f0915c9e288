"""Positions inside attention: what is added to tokens, what turns queries and keys, what is added to logits.

Additive codes and rotary change the tokens or q and k and therefore work with every kernel; a bias (T5 buckets, clipped
offsets, relative key vectors) needs a kernel that takes one, relative value vectors one that holds all weights. The
learned tables are in `networks/blocks/positions.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from vdm_jax.configuration import NonNegative, Positive, Size, SizeOrZero, config
from vdm_jax.errors import UserError

# Axes that one sequence of a layout spans.
LAYOUT_AXES = {"frames": "hw", "positions": "t", "all": "thw"}


def rotary_axis_dims(head_dim: int, axes: int) -> tuple[int, ...]:
    """Even share of `head_dim` given to each of `axes` axes; what is left over is not rotated.

    Raises `UserError` when not even one pair per axis fits.
    """
    share = head_dim // (2 * axes) * 2
    if share == 0:
        raise UserError(f"head_dim={head_dim} is too small for rotary positions over {axes} axes; "
                        f"permitted: >= {2 * axes}")
    return (share,) * axes


def rotary(x: Float[Array, "B T H W K D"], *, base: float = 100.0, axes: str = "thw") -> Float[Array, "B T H W K D"]:
    """Rotate pairs of features by an angle proportional to the frame, row and column (Su et al. 2021, 2104.09864).

    `base` is small because video grids are small: the slowest pair turns about once in `2 pi base` positions.
    """
    dims = rotary_axis_dims(x.shape[-1], len(axes))
    parts, start = [], 0
    for axis, dim in zip(axes, dims, strict=True):
        part = x[..., start : start + dim]
        place = 1 + "thw".index(axis)
        frequency = base ** (-np.arange(0, dim, 2) / dim)
        angle = np.arange(x.shape[place])[:, None] * frequency  # [length, dim/2]
        shape = [1] * (x.ndim - 1) + [dim // 2]
        shape[place] = x.shape[place]
        cos, sin = (jnp.asarray(f(angle), x.dtype).reshape(shape) for f in (np.cos, np.sin))
        first, second = jnp.split(part, 2, axis=-1)
        parts += [first * cos - second * sin, first * sin + second * cos]
        start += dim
    return jnp.concatenate([*parts, x[..., start:]], axis=-1)


@config
class RotaryAxes:
    """Rotary positions as released video transformers have them: channels of a head and base (theta) of each axis, in
    the order frames, rows, columns; neighbouring channels are a pair. Channels that are left over are not turned."""

    dims: tuple[SizeOrZero, SizeOrZero, SizeOrZero]
    bases: tuple[Positive, Positive, Positive] = (10_000.0, 10_000.0, 10_000.0)
    # Rows and columns of training, into which those of other sizes are fitted: as large as fits, in the middle
    # (CogVideoX); None: positions are counted
    grid: tuple[Size, Size] | None = None

    def __post_init__(self):
        if any(dim % 2 for dim in self.dims) or not any(self.dims):
            raise UserError(f"RotaryAxes.dims={self.dims} is not valid; permitted: even numbers, not all of them 0")

    def places(self, rows: int, columns: int) -> tuple[Float[np.ndarray, " H"], Float[np.ndarray, " W"]]:
        """Positions of so many rows and columns."""
        if self.grid is None:
            return np.arange(rows).astype(float), np.arange(columns).astype(float)
        height, width = self.grid
        by_height = rows * width > height * columns  # what is taller than the grid fills its height
        sides = (height, round(height / rows * columns)) if by_height else (round(width / columns * rows), width)
        starts = (round((whole - side) / 2) for whole, side in zip(self.grid, sides, strict=True))
        return tuple(np.linspace(start, (start + side) * (count - 1) / count, count)
                     for start, side, count in zip(starts, sides, (rows, columns), strict=True))


@config
class RotaryCoordinates:
    """Rotary positions by coordinates in time and space, as LTX-Video has them (HaCohen et al. 2024, 2501.00103): the
    channels of all heads together are pairs, of frame, row and column in turn, with C // 6 frequencies each from pi / 2
    to `base` pi / 2, which turn by twice the share of the span less one. Leading channels that are left over are not
    turned."""

    steps: tuple[Positive, Positive, Positive] = (8 / 25, 32.0, 32.0)  # seconds and pixels from token to token
    spans: tuple[Positive, Positive, Positive] = (20.0, 2048.0, 2048.0)  # seconds and pixels
    lead: NonNegative = 0.0  # seconds by which the first token is shorter than the others, since it has one frame
    base: Positive = 10_000.0

    def angles(self, count: int, axis: int, channels: int) -> Float[np.ndarray, "N F"]:
        """Of so many tokens along an axis (0: time) and each frequency; in float32, in which the weights were
        trained."""
        place = np.maximum(np.arange(count, dtype=np.float32) * np.float32(self.steps[axis])
                           - np.float32(self.lead if axis == 0 else 0), 0)
        share = place / np.float32(self.spans[axis]) * 2 - 1
        frequency = np.float32(self.base) ** np.linspace(0, 1, channels // 6, dtype=np.float32)
        return (frequency * np.float32(np.pi / 2))[None] * share[:, None]


Rotary = RotaryAxes | RotaryCoordinates


def rotary_coordinates(x: Float[Array, "B T H W K D"], axes: RotaryCoordinates) -> Float[Array, "B T H W K D"]:
    """Turn neighbouring channels of queries or keys by `axes`, in float32."""
    shape, channels = x.shape[1:4], x.shape[4] * x.shape[5]
    frequencies, rest = channels // 6, channels % 6
    parts = []
    for axis, count in enumerate(shape):
        one = [1, 1, 1, frequencies]
        one[axis] = count
        angle = axes.angles(count, axis, channels).reshape(one)
        parts.append((np.cos(angle), np.sin(angle)))

    def table(which: int, still: float) -> Float[Array, "T H W K D"]:
        found = jnp.stack([jnp.broadcast_to(part[which], (*shape, frequencies)) for part in parts], axis=-1)
        found = jnp.repeat(found.reshape(*shape, -1), 2, axis=-1)
        found = jnp.pad(found, ((0, 0),) * 3 + ((rest, 0),), constant_values=still)
        return found.reshape(*shape, *x.shape[4:])

    wide = x.astype(jnp.float32)
    return (wide * table(0, 1.0) + turned_pairs(wide) * table(1, 0.0)).astype(x.dtype)


def turned_pairs(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """`(a, b)` becomes `(-b, a)` in every pair of neighbours, without strided access."""
    even = np.arange(x.shape[-1]) % 2 == 0
    return jnp.where(even, -jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))


def rotary_pairs(
    x: Float[Array, "B T H W K D"], axes: RotaryAxes, frames: Int[np.ndarray | Array, " T"] | None = None
) -> Float[Array, "B T H W K D"]:
    """Turn neighbouring channels of queries or keys by `axes`, by the number of the frame (`frames`, where it is not
    its place; it may be traced), row and column. Angles are float64, of traced numbers float32, and turning is float32:
    products of large positions and small frequencies are wrong in half precision."""
    parts, start = [], 0
    places = (np.arange(x.shape[1]) if frames is None else frames, *axes.places(*x.shape[2:4]))
    for place, (dim, base) in enumerate(zip(axes.dims, axes.bases, strict=True), 1):
        if not dim:
            continue
        numbers = places[place - 1]
        angle = numbers[:, None] * np.repeat(base ** (-np.arange(0, dim, 2) / dim), 2)
        library = jnp if isinstance(angle, jax.Array) else np
        shape = [1] * (x.ndim - 1) + [dim]
        shape[place] = x.shape[place]
        part = x[..., start : start + dim].astype(jnp.float32)
        cos, sin = (jnp.asarray(f(angle), jnp.float32).reshape(shape) for f in (library.cos, library.sin))
        parts.append((part * cos + turned_pairs(part) * sin).astype(x.dtype))
        start += dim
    return jnp.concatenate([*parts, x[..., start:]], axis=-1)


def relative_index(length: int, max_distance: int) -> Int[np.ndarray, "Q S"]:
    """Index into a table of `2 * max_distance + 1` clipped offsets (key minus query) for one axis."""
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    return np.clip(offset, -max_distance, max_distance) + max_distance


def bucket_index(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "Q S"]:
    """Index into a table of `buckets` offsets that grow coarser with distance (Raffel et al. 2020, 1910.10683).

    Half of the buckets are for keys after the query. Of each half the first half counts single steps, the rest is
    spaced evenly in the logarithm of the distance up to `max_distance`, beyond which all share the last bucket.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half, distance = buckets // 2, np.abs(offset)
    near = half // 2
    ratio = np.log(np.maximum(distance, near) / near) / np.log(max_distance / near)
    far = np.minimum(near + (ratio * (half - near)).astype(int), half - 1)
    return np.where(distance < near, distance, far) + half * (offset > 0)


def sum_of_axes(biases: dict[str, Float[Array, "K _ _"]], lengths: tuple[int, ...]) -> Float[Array, "K qs ss"]:
    """Bias `[K, Q, S]` over sequences that span some axes, from one bias per axis.

    `biases` maps each axis to its `[K, length, length]`, in the order of the axes, `lengths` their lengths.
    """
    axes, total = len(lengths), 0
    for place, bias in enumerate(biases.values()):
        shape = [1] * (1 + 2 * axes)
        shape[0], shape[1 + place], shape[1 + place + axes] = bias.shape
        total = total + bias.reshape(shape)
    count = int(np.prod(lengths))
    heads = next(iter(biases.values())).shape[0]
    return jnp.broadcast_to(total, (heads, *lengths, *lengths)).reshape(heads, count, count)


# Arrangement of scores [B, K, T, H, W, s] along one axis into [sequences of the layout, K, queries..., s].
_SCORES = {"frames": "b k t h w s -> (b t) k h w s", "positions": "b k t h w s -> (b h w) k t s",
           "all": "b k t h w s -> b k t h w s"}


def relative_key_bias(
    q: Float[Array, "B T H W K D"], vectors: dict[str, Float[Array, "_ D"]], layout: str
) -> Float[Array, "N K Q S"]:
    """Bias per sequence from relative key vectors: `q_i . r(j - i) / sqrt(D)`, summed over the axes of the layout.

    This is the key form of Shaw et al. 2018 (1803.02155), in which a learned vector of the clipped offset is added to
    the key; the value form is `relative_values`. `vectors` maps each axis to its table of `2 * max_distance + 1`
    vectors.
    """
    axes = LAYOUT_AXES[layout]
    lengths = [q.shape[1 + "thw".index(a)] for a in axes]
    total = 0
    for place, axis in enumerate(axes):
        table = vectors[axis]
        index = relative_index(lengths[place], table.shape[0] // 2)
        scores = jnp.einsum(f"bthwkd,{axis}sd->bkthws", q * q.shape[-1] ** -0.5, table[index].astype(q.dtype),
                            preferred_element_type=jnp.float32)
        scores = rearrange(scores, _SCORES[layout])
        keys = [1] * len(axes)
        keys[place] = lengths[place]
        total = total + scores.reshape(*scores.shape[:-1], *keys)
    count = int(np.prod(lengths))
    total = jnp.broadcast_to(total, (*total.shape[: 2 + len(axes)], *lengths))
    return total.reshape(*total.shape[:2], count, count)


def relative_values(
    weights: Float[Array, "N K Q S"], vectors: dict[str, Float[Array, "_ D"]], layout: str, shape: tuple[int, int, int]
) -> Float[Array, "N Q K D"]:
    """What relative value vectors add to the output: `sum_j weight_ij r(j - i)`, summed over the axes of the layout.

    The value form of Shaw et al. 2018 (1803.02155), in which a learned vector of the clipped offset is added to the
    value. `weights` are those of sequences of the layout in a video of `shape` (T, H, W); `vectors` as for the keys.
    Weights are first summed over the other axes, so that no vector per pair of tokens is ever held.
    """
    axes = LAYOUT_AXES[layout]
    lengths = [shape["thw".index(axis)] for axis in axes]
    weights = weights.reshape(*weights.shape[:2], *lengths, *lengths)
    total = 0
    for axis, length in zip(axes, lengths, strict=True):
        table = vectors[axis]
        pairs = table[relative_index(length, table.shape[0] // 2)].astype(weights.dtype)  # [length, length, D]
        total = total + jnp.einsum(f"ck{axes}{axes.upper()},{axis}{axis.upper()}d->c{axes}kd", weights, pairs)
    return total.reshape(total.shape[0], -1, *total.shape[-2:])
