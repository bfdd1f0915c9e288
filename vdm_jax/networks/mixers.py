"""Mixers: the residual layers by which tokens of a level exchange information."""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.attention import Bank, External, attend
from vdm_jax.attention.kernels.xla import Keys, dense
from vdm_jax.attention.positions import LAYOUT_AXES, rotary
from vdm_jax.networks import config as cfg
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, Initializer, add_residual, fan_in, silu, zeros
from vdm_jax.networks.positions import AddedPositions, HeadNorm, RelativeBias, RelativeKeys, RelativeValues
from vdm_jax.networks.resampling import every, existing
from vdm_jax.parallel.rules import spread


@flax.struct.dataclass
class Beside:
    """What mixers may see beside the video."""

    banks: dict[str, tuple[Float[Array, "B G L E"], Bool[Array, "B G L"] | None]]  # tokens and mask: text, references
    frame_valid: Bool[Array, "B T"] | None  # frames that exist; None: all

    def every(self, stride: int) -> Beside:
        """The same for a level that has one frame for `stride` of the clip."""
        if stride == 1:
            return self
        banks = {name: (every(tokens, stride), every(mask, stride)) for name, (tokens, mask) in self.banks.items()}
        valid = self.frame_valid
        return Beside(banks, None if valid is None else existing(valid, valid.shape[1] // stride))


class HeadProjection(nn.Module):
    """Several projections to heads by one kernel `(C, parts K D)`, each split by heads over the mesh.

    The kernel is split before the product: after it, devices would hold parts of queries next to parts of keys and
    would have to exchange tokens, of which there are more.
    """

    parts: int
    heads: int
    head_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> tuple[Float[Array, "... K D"], ...]:
        shape = (self.parts, self.heads, self.head_dim)
        kernel = self.param("kernel", fan_in, (x.shape[-1], math.prod(shape)))
        kernel = spread(kernel.astype(self.dtype).reshape(-1, *shape), "heads", dim=2, must=False)
        y = jnp.einsum("...c,cpkd->...pkd", x.astype(self.dtype), kernel)
        y = spread(y, "heads", dim=-2, must=False)
        return tuple(y[..., i, :, :] for i in range(self.parts))


class SelfAttentionLayer(nn.Module):
    """Pre-norm self-attention with a pattern; the zero output projection makes it start as the identity.

    With an `External` pattern outside tokens, the text or reference features, are projected to keys and values of their
    own, as Imagen appends text to its self-attention (Saharia et al. 2022, 2205.11487). Frames of a sample that do not
    exist (`frame_valid`) are not seen; a layer within frames needs no telling.
    """

    config: cfg.SelfAttention
    groups: int
    norm_over: str
    dtype: jnp.dtype
    spread: str = "frames"
    out_init: Initializer = zeros  # of the output projection

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], frame_mask: Bool[np.ndarray, "T T"] | None,
        bank: tuple[Float[Array, "B G L E"], Bool[Array, "B G L"] | None] | None = None,
        frame_valid: Bool[Array, "B T"] | None = None,
    ) -> Array:
        spec, channels = self.config, x.shape[-1]
        layout, heads = spec.pattern.layout, channels // spec.head_dim
        h = GroupNorm(self.groups, self.norm_over, name="norm")(x)
        if spec.position in ("sinusoidal", "learned"):
            h = h + AddedPositions(spec.position, layout, name="position")(h, frame_mask)
        q, k, v = HeadProjection(3, heads, spec.head_dim, self.dtype, name="qkv")(h)
        if spec.qk_norm:
            q, k = HeadNorm(name="query_norm")(q), HeadNorm(name="key_norm")(k)
        bias, external, offset_values = None, None, None
        if isinstance(spec.pattern, External):
            external = self._bank(*bank, heads)
        if spec.position == "rotary":
            q, k = rotary(q, axes=LAYOUT_AXES[layout]), rotary(k, axes=LAYOUT_AXES[layout])
        elif spec.position in ("relative", "t5"):
            bias = RelativeBias(heads, spec.position, name="position")(layout, x.shape[1:4])
        elif spec.position in ("shaw", "shaw_key_value"):
            bias = RelativeKeys(name="position")(q, layout)
            if spec.position == "shaw_key_value":
                offset_values = RelativeValues(spec.head_dim, name="value_position")(layout)
        out = attend(q, k, v, pattern=spec.pattern, kernel=spec.kernel, context=spec.context, bias=bias,
                     frame_mask=frame_mask, frame_valid=None if layout == "frames" else frame_valid, external=external,
                     offset_values=offset_values, split=self.spread)
        out = Dense(channels, kernel_init=self.out_init, dtype=self.dtype, name="out")(out.reshape(x.shape))
        return add_residual(x, out)

    def _bank(self, tokens: Float[Array, "B G L E"], mask: Bool[Array, "B G L"] | None, heads: int) -> Bank:
        tokens = nn.LayerNorm(use_bias=False, dtype=self.dtype, name="external_norm")(tokens)
        k, v = HeadProjection(2, heads, self.config.head_dim, self.dtype, name="external")(tokens)
        if self.config.qk_norm:
            k = HeadNorm(name="external_key_norm")(k)
        return Bank(k, v, mask)


class CrossAttentionLayer(nn.Module):
    """Attention of every video token to text tokens, which may differ per frame."""

    config: cfg.CrossAttention
    groups: int
    norm_over: str
    dtype: jnp.dtype
    spread: str = "frames"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], text: Float[Array, "B G L E"], mask: Bool[Array, "B G L"],
    ) -> Array:
        batch, channels = x.shape[0], x.shape[-1]
        sets = text.shape[1]  # 1: one caption per clip; T: one per frame
        groups = x.shape[1] if self.spread == "height" else sets  # rows that are split cannot be folded behind frames
        heads = (channels // self.config.head_dim, self.config.head_dim)
        h = GroupNorm(self.groups, self.norm_over, name="norm")(x)
        (q,) = HeadProjection(1, *heads, self.dtype, name="query")(h)
        k, v = HeadProjection(2, *heads, self.dtype, name="key_value")(text)
        q = q.reshape(batch, groups, -1, *heads)  # [B, sets or T, tokens, K, D]
        out = dense(q, Keys(k, v, mask[:, :, None, None, :]))
        return add_residual(x, Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(out.reshape(x.shape)))


class TemporalConvolutionLayer(nn.Module):
    """Norm, SiLU and a zero-initialised convolution over frames; appended independent images pass it by, and a frame
    that does not exist counts as the padding beyond the clip's ends."""

    config: cfg.TemporalConvolution
    groups: int
    norm_over: str
    dtype: jnp.dtype
    spread: str = "frames"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], images: int, frame_valid: Bool[Array, "B T"] | None = None
    ) -> Array:
        h = silu(GroupNorm(self.groups, self.norm_over, name="norm")(x))
        if frame_valid is not None:
            h = jnp.where(frame_valid[:, :, None, None, None], h, 0)
        clip = h[:, : x.shape[1] - images]
        kernel = (self.config.kernel, 1, 1)
        h = Convolution(x.shape[-1], kernel, kernel_init=zeros, dtype=self.dtype, spread=self.spread,
                        causal=self.config.causal, name="conv")(clip)
        return add_residual(x, jnp.pad(h, ((0, 0), (0, images), (0, 0), (0, 0), (0, 0))) if images else h)


class FeedForwardLayer(nn.Module):
    """Norm, expansion, SiLU, zero-initialised projection back."""

    config: cfg.FeedForward
    groups: int
    norm_over: str
    dtype: jnp.dtype
    spread: str = "frames"

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Array:
        channels = x.shape[-1]
        h = GroupNorm(self.groups, self.norm_over, name="norm")(x)
        h = silu(Dense(self.config.expansion * channels, kernel_init=fan_in, dtype=self.dtype, name="in")(h))
        return add_residual(x, Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(h))
