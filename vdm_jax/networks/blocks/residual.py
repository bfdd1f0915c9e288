"""The residual block of all networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, Initializer, add_residual, fan_in, silu


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; a 1x1 convolution as the shortcut where the channels change.

    Where a conditioning vector is given, an affine map of it is added between the convolutions; with
    `scale_shift_norm` it scales and shifts the second norm instead (Perez et al. 2018, arXiv 1709.07871).
    """

    features: int
    kernel: tuple[int, int, int] = (1, 3, 3)  # frames, rows, columns
    over: Literal["frame", "clip"] = "frame"  # statistics of the norms
    groups: int = 32
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    scale_shift_norm: bool = False  # how the vector enters
    vector_name: str = "embedding"  # of its map
    vector_dtype: jnp.dtype | None = None  # of its map; None: that of the block
    dropout: float = 0.0  # probability, before the second convolution
    resized: Callable[[Array], Array] | None = None  # a change of resolution, of the stream and of the change to it
    shortcut: Literal["match", "always"] = "match"  # a convolution there where channels change, or always
    residual_scale: float = 1.0  # factor on the shortcut
    out_init: Initializer = fan_in
    sharded_axis: str = "frames"  # what of the video the mesh splits, if it does
    temporal: int = 1  # frames of a convolution after each of its own, which starts as the identity
    causal: bool = False  # over frames
    # Other norms and convolutions, made by their name and by features, kernel, initial value, dtype and name; None:
    # group norms, and convolutions as the options above say
    norms: Callable[..., Callable[..., Array]] | None = None
    convolutions: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], vector: Float[Array, "B G E"] | None = None, train: bool = False,
        images: int = 0, frame_valid: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T H2 W2 O"]:
        """The vector is one for the clip (`g` = 1) or one per frame."""
        modulation = None
        h = silu(self._norm("norm_in")(x))
        if self.resized is not None:
            x, h = self.resized(x), self.resized(h)
        h = self._convolve(h, "conv_in", fan_in, images, frame_valid)
        if vector is not None:
            features, dtype = (1 + self.scale_shift_norm) * self.features, self.vector_dtype or self.dtype
            change = Dense(features, dtype=dtype, name=self.vector_name)(silu(vector))[:, :, None, None]
            modulation = tuple(jnp.split(change, 2, axis=-1)) if self.scale_shift_norm else None
            h = h if self.scale_shift_norm else h + change.astype(h.dtype)
        h = silu(self._norm("norm_out")(h, modulation))
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = self._convolve(h, "conv_out", self.out_init, images, frame_valid)
        if x.shape[-1] != self.features or self.shortcut == "always":
            x = Convolution(self.features, (1, 1, 1), dtype=self.dtype, sharded_axis=self.sharded_axis,
                            name="shortcut")(x)
        return add_residual(x if self.residual_scale == 1 else x * self.residual_scale, h)

    def _norm(self, name: str) -> Callable[..., Array]:
        if self.norms is not None:
            return self.norms(name=name)
        return GroupNorm(self.groups, self.over, self.epsilon, name=name)

    def _convolve(self, h: Array, name: str, init: Initializer, *mixer_inputs: Any) -> Array:
        if self.convolutions is not None:
            return self.convolutions(self.features, self.kernel, kernel_init=init, dtype=self.dtype, name=name)(h)
        options = {"dtype": self.dtype, "sharded_axis": self.sharded_axis, "temporal": self.temporal,
                   "causal": self.causal}
        return Convolution(self.features, self.kernel, kernel_init=init, name=name, **options)(h, *mixer_inputs)
