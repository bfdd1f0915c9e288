"""Percentiles of values that are spread over devices."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def percentile_of_magnitudes(x: Float[Array, "..."], percentile: float, axes: tuple[int, ...]) -> Float[Array, "..."]:
    """`jnp.percentile(abs(x), percentile, axes, keepdims=True)`, without a sort.

    A sort would bring all values of a clip to every device, the whole of 128 x 768 x 1280 pixels say. Bits of
    magnitudes are ordered as integers, so the value of a rank is found by 31 bisections that only count, exactly. No
    gradient flows into the result.
    """
    x = jnp.abs(lax.stop_gradient(x).astype(jnp.float32))
    bits, size = lax.bitcast_convert_type(x, jnp.int32), math.prod(x.shape[axis] for axis in axes)
    position = percentile / 100 * (size - 1)
    rank = math.floor(position)  # of the lower neighbour, from 0

    def count(limit: Array) -> Array:
        return (bits <= limit).sum(axes, dtype=jnp.int32, keepdims=True)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        enough = count(middle) > rank
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low = jnp.zeros_like(bits[tuple(slice(0, 1) if i in axes else slice(None) for i in range(x.ndim))])
    _, found = lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, jnp.iinfo(jnp.int32).max)))
    value = lax.bitcast_convert_type(found, jnp.float32)
    above = jnp.where(bits > found, x, jnp.inf).min(axes, keepdims=True)
    above = jnp.where((count(found) > rank + 1) | (rank + 1 == size), value, above)
    return value + (position - rank) * (above - value)
