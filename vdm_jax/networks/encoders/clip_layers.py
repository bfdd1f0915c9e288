"""What the text and the image encoder of CLIP share (Radford et al. 2021, arXiv 2103.00020, section 2.4).

Both are pre-norm transformers whose queries, keys and values have biases. OpenAI's models use a sigmoid approximation
of GELU ("quick_gelu"), OpenCLIP's the exact one.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import Temporal, TemporalCausal
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.feed_forward import Activation, FeedForward


def check_heads(config) -> None:
    """Raises `UserError` for heads of a transformer encoder that do not divide its width."""
    if config.width % config.heads:
        raise UserError(f"{type(config).__name__}.heads={config.heads} with width={config.width}; permitted: divisors")


class CLIPLayer(nn.Module):
    """Norm, attention, norm, feed-forward, both with a residual connection."""

    heads: int
    hidden: int
    activation: Activation
    epsilon: float
    dtype: jnp.dtype = jnp.float32
    causal: bool = False  # whether tokens see only those before them

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Bool[Array, "B L"] | None = None) -> Float[Array, "B L C"]:
        """`mask` says which tokens may be seen."""
        h = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_attention")(x)
        pattern = TemporalCausal() if self.causal else Temporal()  # tokens stand where frames do
        attention = Attention(heads=self.heads, pattern=pattern, joint=False, bias=True, dtype=self.dtype,
                              name="self_attention")
        x = x + attention(h, frame_valid=mask)
        h = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_feed_forward")(x)
        return x + FeedForward(self.hidden, activation=self.activation, dtype=self.dtype, name="feed_forward")(h)
