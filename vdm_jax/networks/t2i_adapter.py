"""T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): a map of what a frame should show, as features that are added to
each level of a latent U-Net on the way down. They depend on no noise level, so they are made once per video.

Layers follow the authors' code (`TencentARC/T2I-Adapter`), whose kernels are not zero-initialised.
"""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.configuration import Count, Length, Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.layers import Convolution


@config
class T2IAdapter:
    """Sizes of an adapter; the defaults are those for Stable Diffusion 1.x."""

    hint_channels: Width = 3
    widths: Annotated[tuple[Width, ...], Length()] = (320, 640, 1280, 1280)  # of the U-Net, by level
    blocks: Count = 2  # per level; 4 in the light one
    factor: Size = 8  # pixels of a side of the map per latent
    light: bool = False  # levels work in a quarter of their channels
    dtype: str = "float32"  # of the activations

    def __post_init__(self):
        if self.light and (len(self.widths) < 2 or self.widths[-1] != self.widths[-2] or any(
                width % 4 for width in self.widths)):
            raise UserError(f"T2IAdapter.widths={self.widths} with light=True; permitted: multiples of 4, the last two "
                            "equal")


T2I_ADAPTER_SD1 = T2IAdapter()


class T2IAdapterNetwork(nn.Module):
    """Maps in [0, 1] of each frame to what is added to each level of the U-Net, from the finest on.

    Raises `UserError` for maps whose sides are no multiples of `factor`, or of other channels.
    """

    config: T2IAdapter

    @nn.compact
    def __call__(self, hint: Float[Array, "B T H W D"]) -> tuple[Float[Array, "B T _ _ _"], ...]:
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        if hint.shape[2] % spec.factor or hint.shape[3] % spec.factor or hint.shape[4] != spec.hint_channels:
            raise UserError(f"map of shape {hint.shape}; permitted: {spec.hint_channels} channels, and sides that are "
                            f"multiples of {spec.factor}")

        def convolution(name: str, width: int, side: int) -> nn.Module:
            return Convolution(width, (1, side, side), dtype=dtype, name=f"adapter_{name}")

        x = rearrange(hint.astype(dtype), "b t (h i) (w j) c -> b t h w (c i j)", i=spec.factor, j=spec.factor)
        if not spec.light:
            x = convolution("in", spec.widths[0], 3)(x)
        found = []
        for i, width in enumerate(spec.widths):
            inner = width // 4 if spec.light else width
            x = halved(x) if i else x
            if spec.light or x.shape[-1] != width:
                x = convolution(f"{i}_in", inner, 1)(x)
            for j in range(spec.blocks):
                y = jax.nn.relu(convolution(f"{i}_{j}_first", inner, 3)(x))
                x = x + convolution(f"{i}_{j}_second", inner, 3 if spec.light else 1)(y)
            x = convolution(f"{i}_out", width, 1)(x) if spec.light else x
            found.append(x)
        return tuple(found)


def halved(x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C"]:
    """Means over two rows and columns; of an odd side the last one alone."""
    odd = ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2), (0, 0))
    return rearrange(jnp.pad(x, odd, mode="edge"), "b t (h i) (w j) c -> b t h w (i j) c", i=2, j=2).mean(-2)
