"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of the first half of an image network that sees a map of
what the frame should show, and adds to the features of the network it is a copy of.

    control = ControlNetNetwork(config).apply({"params": params}, x, level, context, hint)
    prediction = LatentUNetNetwork(unet).apply({"params": unet_params}, x, level, context, control=control)

Several are added up. `LatentNetwork.control_nets` has them in stages, for conditions that enter as residuals. That of a
video network sees each frame by itself, as its image layers do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.configuration import Length, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1, LatentUNet, check, embed, image_unet, middle, way_down
from vdm_jax.networks.latent_unet_blocks import BlockInputs, Control
from vdm_jax.networks.layers import Convolution, silu, zeros


@config
class ControlNet:
    """Sizes of a ControlNet; the defaults are those for Stable Diffusion 1.5."""

    unet: LatentUNet = LATENT_UNET_SD1  # whose way down and middle it copies; its `out_channels` do not matter
    hint_channels: Width = 3
    # Of the map, which is halved before each but the first
    hint_widths: Annotated[tuple[Width, ...], Length()] = (16, 32, 96, 256)

    def __post_init__(self):
        if self.unet.temporal or self.unet.temporal_conv or self.unet.motion or self.unet.scalars:
            raise UserError("ControlNet.unet has temporal layers or scalars; permitted: an image network",
                            "ControlNet.unet")

    @property
    def factor(self) -> int:
        """Pixels of a side of the map per latent."""
        return 2 ** (len(self.hint_widths) - 1)


CONTROL_NET_SD1 = ControlNet()


def control_net_of(unet: LatentUNet, **options: Any) -> ControlNet:
    """The sizes of a ControlNet of a U-Net: its image layers, without scalars. `options` are fields of
    `ControlNet`. Raises `UserError` for a U-Net that attends to no tokens."""
    return ControlNet(unet=dataclasses.replace(image_unet(unet), scalars=0, weight_channels=0), **options)


class ControlNetNetwork(nn.Module):
    """Noisy latents `[B, T, H, W, C]` and maps in [0, 1] of each frame to what is added to the U-Net's features.

    It starts with zeros. Raises `UserError` for maps of another size than `factor` times that of the latents.
    """

    config: ControlNet

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], level: Float[Array, " B"] | Float[Array, "B T"],
        tokens: Float[Array, "B G L E"],
        hint: Float[Array, "B T H2 W2 D"], *, scale: float | Float[Array, " B"] = 1.0,
        guess: Float[Array, " B"] | None = None, classes: Int[Array, " B"] | None = None,
    ) -> Control:
        """`scale` is a factor on everything that is added. Where `guess` is 1, residuals count by their resolution:
        from 0.1 at the first to 1 in the middle, in equal ratios (guess mode, as released)."""
        spec, unet, dtype = self.config, self.config.unet, jnp.dtype(self.config.unet.dtype)
        check(unet, x, tokens, None, classes)
        check_map(spec, x, hint)
        block_inputs = BlockInputs(embed(self, unet, level, None, classes), tokens.astype(dtype))
        x = Convolution(unet.widths[0], dtype=dtype, name="stem")(x) + Hint(
            spec.hint_widths, unet.widths[0], dtype, name="hint")(hint)
        x, skips = way_down(self, unet, x, block_inputs)
        return residuals_of(skips, middle(self, unet, x, block_inputs), scale, guess, dtype)


def check_map(spec: Any, x: Float[Array, "B T H W C"], hint: Float[Array, "B T H2 W2 D"]) -> None:
    """Raise `UserError` for a map that is not `spec.factor` times the size of the latents, of as many frames."""
    wanted = (*x.shape[:2], spec.factor * x.shape[2], spec.factor * x.shape[3], spec.hint_channels)
    if hint.shape != wanted:
        raise UserError(f"map of shape {hint.shape}; permitted: {wanted}")


def residuals_of(
    skips: Sequence[Float[Array, "B T _ _ _"]], x: Float[Array, "B T _ _ _"], scale: float | Float[Array, " B"],
    guess: Float[Array, " B"] | None, dtype: jnp.dtype,
) -> Control:
    """Zero-initialised convolutions of the features of all skip connections and of the middle (`x`), in the network
    that calls it."""
    guess = jnp.zeros(1) if guess is None else guess

    def added(features: Array, name: str, place: float) -> Array:
        zero = Convolution(features.shape[-1], (1, 1, 1), kernel_init=zeros, dtype=dtype, name=name)
        factor = scale * jnp.where(guess > 0, 10.0 ** (place - 1), 1.0)
        return factor.astype(dtype).reshape(-1, 1, 1, 1, 1) * zero(features)

    residuals = (added(skip, f"control_{i}", i / len(skips)) for i, skip in enumerate(skips))
    return Control(tuple(residuals), added(x, "control_middle", 1.0))


class Hint(nn.Module):
    """The map, convolved and halved to the size of the latents."""

    widths: tuple[int, ...]
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hint: Float[Array, "B T H W D"]) -> Float[Array, "B T H2 W2 C"]:
        widths, dtype = self.widths, self.dtype
        x = silu(Convolution(widths[0], dtype=dtype, name="in")(hint))
        for i, (width, following) in enumerate(zip(widths, widths[1:], strict=False)):
            x = silu(Convolution(width, dtype=dtype, name=f"conv_{2 * i}")(x))
            x = silu(Convolution(following, strides=(2, 2), dtype=dtype, name=f"conv_{2 * i + 1}")(x))
        return Convolution(self.features, kernel_init=zeros, dtype=dtype, name="out")(x)
