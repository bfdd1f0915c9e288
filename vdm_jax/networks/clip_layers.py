"""What the text and the image encoder of CLIP share (Radford et al. 2021, arXiv 2103.00020, section 2.4).

Both are pre-norm transformers whose queries, keys and values have biases. OpenAI's models use a sigmoid approximation
of GELU ("quick_gelu"), OpenCLIP's the exact one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.errors import UserError
from vdm_jax.networks.layers import Dense

Activation = Literal["quick_gelu", "gelu", "gelu_new", "relu", "silu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),  # the tanh form
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def check_encoder(name: str, width: int, heads: int, layers: int, activation: str) -> None:
    """Raises `UserError` for sizes of a transformer encoder `name` that do not fit together."""
    if min(width, heads, layers) < 1 or width % heads:
        raise UserError(f"{name}: width={width}, heads={heads}, layers={layers}; permitted: positive, heads dividing "
                        "the width")
    if activation not in ACTIVATIONS:
        raise UserError(f"{name}.activation={activation!r}; permitted: {', '.join(ACTIVATIONS)}")


class EncoderAttention(nn.Module):
    """Self-attention with a kernel each for queries, keys, values and the output."""

    width: int  # of queries, keys and values together
    heads: int
    bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L C"], mask: Bool[Array, "B 1 Q S"] | Bool[np.ndarray, "Q S"] | None = None,
        logits_bias: Float[Array, "K Q S"] | None = None, scaled: bool = True,
    ) -> Float[Array, "B L C"]:
        """`logits_bias` is added to the logits; without `scaled` these are not divided by the root of the head size."""
        dims = (*x.shape[:2], self.heads, self.width // self.heads)

        def project(name: str) -> Float[Array, "B L K D"]:
            return Dense(self.width, use_bias=self.bias, dtype=self.dtype, name=name)(x).reshape(dims)

        q, k, v = project("query"), project("key"), project("value")
        q = q if scaled else q * dims[-1] ** 0.5  # `dense` scales
        y = dense(q, Keys(k, v, mask, logits_bias)).reshape(*dims[:2], self.width)
        return Dense(x.shape[-1], use_bias=self.bias, dtype=self.dtype, name="out")(y)


class FeedForward(nn.Module):
    """Two affine maps with a non-linearity between them."""

    hidden: int
    activation: Activation
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        h = ACTIVATIONS[self.activation](Dense(self.hidden, dtype=self.dtype, name="expand")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="out")(h)


class CLIPLayer(nn.Module):
    """Norm, attention, norm, feed-forward, both with a residual connection."""

    heads: int
    hidden: int
    activation: Activation
    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Array | np.ndarray | None = None) -> Float[Array, "B L C"]:
        h = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_attention")(x)
        x = x + EncoderAttention(x.shape[-1], self.heads, dtype=self.dtype, name="self_attention")(h, mask)
        h = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_feed_forward")(x)
        return x + FeedForward(self.hidden, self.activation, self.dtype, name="feed_forward")(h)
