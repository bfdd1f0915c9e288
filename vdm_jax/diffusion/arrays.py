"""The array types of this room and the two helpers that every file needs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key, Shaped

# `T H W C` in practice, but nothing in this room minds other trailing dimensions.
Video = Float[Array, "B *rest"]
Level = Float[ArrayLike, "*batch"]  # log-SNR, [B], or [B, T] where frames carry their own level
Network = Callable[[Video, Level], Video]  # (scaled noisy video, log-SNR) -> raw prediction
Denoiser = Callable[[Video, Level], Video]  # (noisy video z, log-SNR) -> estimate of the clean video
Hook = Callable[[Video, Video, Level, Int[Array, ""]], Video]  # (x_hat, z, log-SNR, step index) -> x_hat


def expand(level: Shaped[ArrayLike, "*batch"], like: Video) -> Array:
    """`level` with unit dimensions appended, to broadcast against the leading dimensions of `like`."""
    level = jnp.asarray(level)
    return level.reshape(level.shape + (1,) * (like.ndim - level.ndim))


def noise_from_keys(
    keys: Key[Array, " B"], stream: int | Int[Array, ""], shape: tuple[int, ...], shared: bool = False
) -> Video:
    """Standard normal noise of `shape`, row `b` drawn from `fold_in(keys[b], stream)` alone.

    The row is therefore the same whatever the batch size and whichever device holds it. This holds for
    threefry keys, the default of `jax.random.key`; the rbg generators mix keys under `vmap`. Noise that is `shared` is
    the same for all frames, the dimension after the batch.
    """
    if shared:
        return jnp.broadcast_to(noise_from_keys(keys, stream, (shape[0], 1, *shape[2:])), shape)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, stream), shape[1:]))(keys)
