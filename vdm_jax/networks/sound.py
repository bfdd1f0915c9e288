"""Sound as tokens: what is heard in each frame, and around it in windows of several lengths, and in the whole clip.

TempoTokens (Yariv et al. 2024, arXiv 2309.16429): a perceptron makes a token of each frame's features, whose averages
over windows of 1, 2, 4 and 8 frames are local tokens, and one that is pooled by attention over all frames is global.
The activation and the pooling's query are not in its paper; here they are GELU and a learned vector.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vdm_jax.networks.layers import Dense

WINDOWS = (1, 2, 4, 8)  # frames


class SoundTokens(nn.Module):
    """The tokens of each frame: the local ones, then the global one, which is the same for all frames."""

    features: int  # of a token
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, sound: Float[Array, "B T F"]) -> Float[Array, "B T _ _"]:
        hidden = max(sound.shape[-1] // 4, 1)  # 9216 -> 2304 -> 2304 -> 1024, as published
        h = nn.LayerNorm(name="norm", dtype=self.dtype)(sound)
        for i in range(2):
            h = nn.gelu(Dense(hidden, dtype=self.dtype, name=f"hidden_{i}")(h))
        h = Dense(self.features, dtype=self.dtype, name="out")(h)
        local = [_averaged(h, length) for length in WINDOWS]
        weights = jax.nn.softmax(Dense(1, use_bias=False, name="pool")(h).astype(jnp.float32), axis=1)
        whole = (weights.astype(h.dtype) * h).sum(1, keepdims=True)
        return jnp.stack([*local, jnp.broadcast_to(whole, h.shape)], axis=2)


def _averaged(x: Float[Array, "B T C"], length: int) -> Float[Array, "B T C"]:
    """The mean of each frame and its neighbours, `length` in all, of those that there are; of an even number one more
    lies after the frame than before it."""
    frames = x.shape[1]
    distance = np.arange(frames) - np.arange(frames)[:, None]
    near = (distance >= -((length - 1) // 2)) & (distance <= length // 2)
    return jnp.einsum("btc,st->bsc", x, jnp.asarray(near / near.sum(1, keepdims=True), x.dtype))


def grouped(one: Shaped[Array, "B G *rest"], other: Shaped[Array, "B H *rest2"]) -> Shaped[Array, "B _ *rest3"]:
    """Tokens after tokens, of which each has one group or one per frame."""
    groups = max(one.shape[1], other.shape[1])
    return jnp.concatenate([jnp.broadcast_to(a, (a.shape[0], groups, *a.shape[2:])) for a in (one, other)], axis=2)
