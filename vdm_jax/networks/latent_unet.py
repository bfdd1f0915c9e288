"""The U-Nets of open latent models, layer for layer: Stable Diffusion 1.x and 2.x and Stable Video Diffusion.

They are networks of their own, and not configs of `unet.py`, because weights fit one order of layers only. A video
network without its temporal layers is the image network (Blattmann et al. 2023, arXiv 2311.15127).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoder_blocks import Double
from vdm_jax.networks.latent_unet_blocks import Given, LatentBlock, Sizes, TokenTransformer, level_code
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, silu


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentUNet:
    """Sizes of a U-Net, by level from the finest on; the defaults are those of Stable Diffusion 1.x."""

    in_channels: int = 4  # of the noisy latents and what is joined to them: masks, depth, latents of an image
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)  # channels
    blocks: int = 2  # residual blocks on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)  # whether a transformer follows each block
    heads: tuple[int, ...] = (8, 8, 8, 8)
    only_context: tuple[bool, ...] = (False, False, False, False)  # no attention among tokens
    context_channels: int = 768  # of the text or image tokens
    convolve_tokens: bool = True  # maps around transformers stored as convolutions (1.x) and not as matrices (2.x)
    classes: int = 0  # of a table added to the embedding: noise levels of the low-resolution input
    scalars: int = 0  # numbers added to the embedding: frames per second, motion, noise of the image
    scalar_channels: int = 256  # of the code of each
    temporal: bool = False  # layers over frames
    groups: int = 32  # of the norms
    # Of the norms in residual blocks: on the way down with and without attention, in the middle, on the way up.
    epsilons: tuple[float, float, float, float] = (1e-5, 1e-5, 1e-5, 1e-5)
    attention_kernel: str = "auto"  # see `vdm_jax.attention`
    dtype: str = "float32"  # of the activations

    def __post_init__(self):
        levels = len(self.widths)
        for name in ("attention", "heads", "only_context"):
            if len(getattr(self, name)) != levels:
                raise UserError(f"LatentUNet.{name}={getattr(self, name)} for {levels} levels; permitted: an entry "
                                "each")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width < 1 or width % self.groups or heads < 1 or width % heads:
                raise UserError(f"LatentUNet.widths={self.widths} with heads={self.heads}, groups={self.groups}; "
                                "permitted: multiples of both")


LATENT_UNET_SD1 = LatentUNet()
LATENT_UNET_SD1_INPAINT = LatentUNet(in_channels=9)
LATENT_UNET_SD2 = LatentUNet(heads=(5, 10, 20, 20), context_channels=1024, convolve_tokens=False)
LATENT_UNET_SD2_DEPTH = dataclasses.replace(LATENT_UNET_SD2, in_channels=5)
LATENT_UNET_UPSCALER = LatentUNet(
    in_channels=7, widths=(256, 512, 512, 1024), attention=(False, True, True, True), context_channels=1024,
    only_context=(True, True, True, False), convolve_tokens=False, classes=1000)
# The released weights run with these epsilons in diffusers; the authors' own code has 1e-5 everywhere.
LATENT_UNET_SVD = dataclasses.replace(LATENT_UNET_SD2, in_channels=8, scalars=3, temporal=True,
                                      epsilons=(1e-6, 1e-5, 1e-5, 1e-6))


class LatentUNetNetwork(nn.Module):
    """Noisy latents `[B, T, H, W, C]` to a prediction of `out_channels`.

    Raises `UserError` for latents whose sides do not halve often enough, and for inputs that the config lacks or wants.
    """

    config: LatentUNet

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], level: Float[Array, " b"], context: Float[Array, "b g l e"],
        *, scalars: Float[Array, "b n"] | None = None, classes: Int[Array, " b"] | None = None,
        images: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h w o"]:
        """`level` is the timestep, or ln(sigma) / 4 in Stable Video Diffusion; the context has one group of tokens for
        the clip or one per frame. Frames that are independent images pass the layers over frames by.
        """
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        self._check(x, context, scalars, classes)
        given = Given(self._embedding(level, scalars, classes), context.astype(dtype), images)
        sizes = Sizes(spec.groups, spec.temporal, spec.convolve_tokens, spec.attention_kernel, dtype)
        attending, plain, middle, up = spec.epsilons

        def block(x: Array, name: str, i: int, epsilon: float, transform: bool) -> Array:
            x = LatentBlock(spec.widths[i], sizes, epsilon, name=name)(x, given)
            if not transform:
                return x
            return TokenTransformer(spec.heads[i], sizes, spec.only_context[i], name=f"{name}_transformer")(x, given)

        x = Convolution(spec.widths[0], dtype=dtype, name="stem")(x)
        skips, last = [x], len(spec.widths) - 1
        for i, transform in enumerate(spec.attention):
            for j in range(spec.blocks):
                x = block(x, f"down_{i}_{j}", i, attending if transform else plain, transform)
                skips.append(x)
            if i < last:
                x = Convolution(spec.widths[i], strides=(2, 2), dtype=dtype, name=f"downsample_{i}")(x)
                skips.append(x)
        x = LatentBlock(spec.widths[-1], sizes, middle, name="middle_in")(x, given)
        x = TokenTransformer(spec.heads[-1], sizes, name="middle_transformer")(x, given)
        x = LatentBlock(spec.widths[-1], sizes, middle, name="middle_out")(x, given)
        for k, i in enumerate(reversed(range(len(spec.widths)))):
            for j in range(spec.blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), f"up_{k}_{j}", i, up, spec.attention[i])
            if i:
                x = Double(dtype, name=f"upsample_{k}")(x)
        x = silu(GroupNorm(spec.groups, epsilon=1e-5, name="norm")(x))
        return Convolution(spec.out_channels, dtype=dtype, name="out")(x)

    def _embedding(
        self, level: Float[Array, " b"], scalars: Float[Array, "b n"] | None, classes: Int[Array, " b"] | None
    ) -> Float[Array, "b e"]:
        spec, dtype, channels = self.config, jnp.dtype(self.config.dtype), 4 * self.config.widths[0]

        def hidden(code: Array, name: str) -> Array:
            h = silu(Dense(channels, dtype=dtype, name=f"{name}_in")(code))
            return Dense(channels, dtype=dtype, name=f"{name}_out")(h)

        embedding = hidden(level_code(level, spec.widths[0]), "level")
        if spec.scalars:
            code = level_code(scalars, spec.scalar_channels)
            embedding = embedding + hidden(code.reshape(len(code), -1), "scalars")
        if spec.classes:
            table = self.param("classes", nn.initializers.normal(1.0), (spec.classes, channels))
            embedding = embedding + table[classes].astype(dtype)
        return embedding

    def _check(self, x: Array, context: Array, scalars: Array | None, classes: Array | None) -> None:
        spec, factor = self.config, 2 ** (len(self.config.widths) - 1)
        if x.shape[-1] != spec.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise UserError(f"latents of shape {x.shape}; permitted: {spec.in_channels} channels, sides in multiples "
                            f"of {factor}")
        if context.ndim != 4 or context.shape[1] not in (1, x.shape[1]) or context.shape[3] != spec.context_channels:
            raise UserError(f"context of shape {context.shape} for {x.shape[1]} frames; permitted: [B, 1 or frames, "
                            f"tokens, {spec.context_channels}]")
        wanted = (None if not spec.scalars else (len(x), spec.scalars), None if not spec.classes else (len(x),))
        found = tuple(None if a is None else a.shape for a in (scalars, classes))
        if found != wanted:
            raise UserError(f"scalars and classes of shape {found}; permitted: {wanted}")
