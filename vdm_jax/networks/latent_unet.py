"""The U-Nets of open latent models, layer for layer: Stable Diffusion 1.x and 2.x and the video models made of them.

They are networks of their own, and not configs of `unet.py`, because weights fit one order of layers only. A video
network without its temporal layers is the image network (Blattmann et al. 2023, arXiv 2311.15127).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.configuration import Count, Depth, Positive, Size, SizeOrZero, Width, WidthOrZero, config
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoder_blocks import Double
from vdm_jax.networks.latent_frames import (
    MOTION_V1,
    MOTION_V2,
    MOTION_V3,
    FrameConvolutions,
    FrameTransformer,
    Motion,
    Stack,
    motion_module,
)
from vdm_jax.networks.latent_unet_blocks import (
    Control,
    FactorisedAttention,
    Given,
    LatentBlock,
    Sizes,
    TokenTransformer,
    level_code,
)
from vdm_jax.networks.layers import Convolution, Dense, GroupNorm, silu


@config
class LatentUNet:
    """Sizes of a U-Net, by level from the finest on; the defaults are those of Stable Diffusion 1.x."""

    in_channels: Width = 4  # of the noisy latents and what is joined to them: masks, depth, latents of an image
    out_channels: Size = 4
    widths: tuple[Width, ...] = (320, 640, 1280, 1280)  # channels
    blocks: Depth = 2  # residual blocks on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)  # whether a transformer follows each block
    heads: tuple[Size, ...] = (8, 8, 8, 8)
    only_context: tuple[bool, ...] = (False, False, False, False)  # no attention among tokens
    context_channels: WidthOrZero = 768  # of the text or image tokens; 0: takes none (with `offsets` only)
    convolve_tokens: bool = True  # maps around transformers stored as convolutions (1.x) and not as matrices (2.x)
    classes: WidthOrZero = 0  # of a table added to the embedding: noise levels of the low-resolution input
    scalars: SizeOrZero = 0  # numbers added to the embedding: frames per second, motion, noise of the image
    scalar_channels: Width = 256  # of the code of each
    temporal: bool = False  # layers over frames mixed with those within, by learned shares
    stack: Stack | None = None  # layers over frames after those within
    motion: Motion | None = None  # motion modules after each block
    # Furthest offset that attention over frames after each attention within frames tells apart (LVDM); 0: none
    offsets: SizeOrZero = 0
    mix_frames: SizeOrZero = 0  # that have a learned share each, with `temporal`; 0: all frames have the same
    # Of known frames and their mask, which layers over frames are told, with `temporal`
    known_channels: WidthOrZero = 0
    norm_over: Literal["frame", "clip"] = "frame"  # statistics of the norms
    film: bool = False  # the embedding scales and shifts norms in residual blocks, and is not added
    groups: Count = 32  # of the norms
    # Of the norms in residual blocks: on the way down with and without attention, in the middle, on the way up.
    epsilons: tuple[Positive, Positive, Positive, Positive] = (1e-5, 1e-5, 1e-5, 1e-5)
    attention_kernel: str = "auto"  # see `vdm_jax.attention`
    attention_context: str = "none"  # of attention over frames; attention within frames has nothing to exchange
    dtype: str = "float32"  # of the activations

    @property
    def video(self) -> bool:
        """Whether there are layers over frames."""
        return bool(self.temporal or self.stack or self.motion or self.offsets)

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
            if self.motion and (width % self.motion.heads or width % self.motion.groups):
                raise UserError(f"LatentUNet.widths={self.widths} with {self.motion}; permitted: multiples of its "
                                "heads and groups")
        if self.temporal + (self.stack is not None) + (self.motion is not None) + (self.offsets > 0) > 1:
            raise UserError(f"LatentUNet: temporal={self.temporal}, stack={self.stack}, motion={self.motion}, "
                            f"offsets={self.offsets}; permitted: one kind of layers over frames")
        if not self.temporal and (self.mix_frames or self.known_channels):
            raise UserError(f"LatentUNet: mix_frames={self.mix_frames}, known_channels={self.known_channels} with "
                            "temporal=False; permitted: 0")
        if self.norm_over not in ("frame", "clip"):
            raise UserError(f"LatentUNet.norm_over={self.norm_over!r} is not valid; permitted: 'frame', 'clip'")
        if not self.context_channels and not self.offsets:
            raise UserError("LatentUNet: context_channels=0 with offsets=0; permitted: offsets above 0 there")


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
LATENT_UNET_MODELSCOPE = dataclasses.replace(LATENT_UNET_SD2, stack=Stack())
# Video LDM (Blattmann et al. 2023, arXiv 2304.08818): the layers over frames of its published sizes (656M; 649M on 1.x)
# are those of Stable Video Diffusion. Its prediction and interpolation networks see known frames; that of
# interpolation, of 1,509M, has the sizes of 1.x. A class tells it which of the two rates to make.
LATENT_UNET_VIDEO_LDM = dataclasses.replace(LATENT_UNET_SD2, temporal=True)
LATENT_UNET_VIDEO_LDM_SD1 = dataclasses.replace(LATENT_UNET_SD1, temporal=True)
LATENT_UNET_VIDEO_LDM_PREDICTION = dataclasses.replace(LATENT_UNET_VIDEO_LDM, known_channels=5)
LATENT_UNET_VIDEO_LDM_INTERPOLATION = dataclasses.replace(LATENT_UNET_VIDEO_LDM_SD1, known_channels=5, classes=2)
LATENT_UNET_VIDEO_LDM_UPSCALER = dataclasses.replace(LATENT_UNET_UPSCALER, temporal=True)
# LVDM (He et al. 2022, arXiv 2211.13221). The input of prediction and interpolation has a mask; the class is the
# timestep to which the known latents are noised.
LATENT_UNET_LVDM = LatentUNet(
    widths=(256, 512, 768, 1024), blocks=3, attention=(False, True, True, True), heads=(4, 4, 4, 4),
    context_channels=0, offsets=4, norm_over="clip", film=True)
LATENT_UNET_LVDM_PREDICTION = dataclasses.replace(LATENT_UNET_LVDM, in_channels=5, classes=251)
LATENT_UNET_LVDM_INTERPOLATION = dataclasses.replace(LATENT_UNET_LVDM_PREDICTION, offsets=5)
LATENT_UNET_LVDM_TEXT = dataclasses.replace(LATENT_UNET_SD1, offsets=16, norm_over="clip")
LATENT_UNET_ANIMATEDIFF_V1, LATENT_UNET_ANIMATEDIFF_V2, LATENT_UNET_ANIMATEDIFF_V3 = (
    dataclasses.replace(LATENT_UNET_SD1, motion=motion) for motion in (MOTION_V1, MOTION_V2, MOTION_V3))


class LatentUNetNetwork(nn.Module):
    """Noisy latents `[B, T, H, W, C]` to a prediction of `out_channels`.

    Raises `UserError` for inputs that the config lacks or wants, and clips longer than the motion modules know.
    """

    config: LatentUNet

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], level: Float[Array, " B"], context: Float[Array, "B G L E"] | None = None,
        *, scalars: Float[Array, "B N"] | None = None, classes: Int[Array, " B"] | None = None,
        images: Bool[Array, "B T"] | None = None, control: Control | None = None,
        known: Float[Array, "B T H W M"] | None = None, train: bool = False,
    ) -> Float[Array, "B T H W O"]:
        """`level` is the timestep, or ln(sigma) / 4 in Stable Video Diffusion; the context has one group of tokens for
        the clip or one per frame. Frames that are independent images pass the layers over frames by. `control` is what
        a ControlNet made of the same latents; `known` has known latents, zero elsewhere, and their mask.
        """
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        check(spec, x, context, scalars, classes, known)
        context = None if context is None else context.astype(dtype)
        levels = None if known is None else known_by_level(spec, known)
        given = Given(embed(self, spec, level, scalars, classes), context, images, levels, train)
        x = Convolution(spec.widths[0], dtype=dtype, name="stem")(x)
        if spec.stack:
            head_dim = spec.widths[0] // spec.heads[0]
            x = FrameTransformer(spec.stack.first_heads, head_dim, spec.groups, sizes_of(spec), name="stem_motion")(
                x, images)
        x, skips = way_down(spec, x, given)
        x = middle(spec, x, given)
        if control is not None:
            skips, x = _controlled(skips, x, control)
        for k, i in enumerate(reversed(range(len(spec.widths)))):
            for j in range(spec.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = _block(spec, x, given, f"up_{k}_{j}", i, spec.epsilons[3])
            if i:  # a side that was odd is one pixel shorter than twice
                x = Double(dtype, name=f"upsample_{k}", shape=skips[-1].shape[2:4])(x)
        x = silu(GroupNorm(spec.groups, spec.norm_over, 1e-5, name="norm")(x))
        # The prediction is not rounded to bfloat16, as in `UNet`: samplers add many of them.
        return Convolution(spec.out_channels, dtype=jnp.float32, name="out")(x.astype(jnp.float32))


# ------------------------------------------------ parts, which make their layers in the network that calls them


def check(
    spec: LatentUNet, x: Array, context: Array | None, scalars: Array | None, classes: Array | None,
    known: Array | None = None,
) -> None:
    """Raises `UserError` for inputs of a shape that the network does not take."""
    if x.shape[-1] != spec.in_channels:
        raise UserError(f"latents of shape {x.shape}; permitted: {spec.in_channels} channels")
    if spec.motion and x.shape[1] > spec.motion.frames:
        raise UserError(f"latents of {x.shape[1]} frames; permitted: at most Motion.frames={spec.motion.frames}")
    given = (0, 0, 0, 0) if context is None else context.shape
    if len(given) != 4 or (given[1] not in (1, x.shape[1]) and spec.context_channels) or (
            given[3] != spec.context_channels):
        shapes = f"[B, 1 or frames, tokens, {spec.context_channels}]" if spec.context_channels else "none"
        raise UserError(f"context of shape {given} for {x.shape[1]} frames; permitted: {shapes}")
    wanted = (None if not spec.scalars else (len(x), spec.scalars), None if not spec.classes else (len(x),),
              None if not spec.known_channels else (*x.shape[:4], spec.known_channels))
    found = tuple(None if a is None else a.shape for a in (scalars, classes, known))
    if found != wanted:
        raise UserError(f"scalars and classes and known frames of shape {found}; permitted: {wanted}")


def sizes_of(spec: LatentUNet) -> Sizes:
    """What all blocks share."""
    return Sizes(spec.groups, spec.temporal, spec.convolve_tokens, spec.attention_kernel, jnp.dtype(spec.dtype),
                 spec.attention_context, spec.norm_over, spec.film, spec.mix_frames, spec.offsets)


def embed(
    module: nn.Module, spec: LatentUNet, level: Float[Array, " B"], scalars: Float[Array, "B N"] | None = None,
    classes: Int[Array, " B"] | None = None,
) -> Float[Array, "B E"]:
    """The vector that residual blocks see, of noise level, scalars and class; its table is a parameter of `module`."""
    dtype, channels = jnp.dtype(spec.dtype), 4 * spec.widths[0]

    def hidden(code: Array, name: str) -> Array:
        h = silu(Dense(channels, dtype=dtype, name=f"{name}_in")(code))
        return Dense(channels, dtype=dtype, name=f"{name}_out")(h)

    embedding = hidden(level_code(level, spec.widths[0]), "level")
    if spec.scalars:
        code = level_code(scalars, spec.scalar_channels)
        embedding = embedding + hidden(code.reshape(len(code), -1), "scalars")
    if spec.classes:
        table = module.param("classes", nn.initializers.normal(1.0), (spec.classes, channels))
        embedding = embedding + table[classes].astype(dtype)
    return embedding


def known_by_level(spec: LatentUNet, known: Float[Array, "B T H W M"]) -> tuple[Array, ...]:
    """Known frames and their mask at the resolution of each level, by learned convolutions."""
    levels, dtype = [known.astype(spec.dtype)], jnp.dtype(spec.dtype)
    for i in range(len(spec.widths) - 1):
        halve = Convolution(spec.known_channels, strides=(2, 2), dtype=dtype, name=f"known_{i}")
        levels.append(halve(levels[-1]))
    return tuple(levels)


def way_down(
    spec: LatentUNet, x: Float[Array, "B T H W C"], given: Given
) -> tuple[Float[Array, "B T H2 W2 C2"], list[Array]]:
    """The blocks before the middle; returns their output and what the way up sees of them, `x` first."""
    skips, last, dtype = [x], len(spec.widths) - 1, jnp.dtype(spec.dtype)
    attending, plain = spec.epsilons[:2]
    for i, transform in enumerate(spec.attention):
        for j in range(spec.blocks):
            x = _block(spec, x, given, f"down_{i}_{j}", i, attending if transform else plain)
            skips.append(x)
        if i < last:
            x = Convolution(spec.widths[i], strides=(2, 2), dtype=dtype, name=f"downsample_{i}")(x)
            skips.append(x)
    return x, skips


def middle(spec: LatentUNet, x: Float[Array, "B T H W C"], given: Given) -> Float[Array, "B T H W C"]:
    """Two residual blocks at the coarsest level, with a transformer between them."""
    epsilon = spec.epsilons[2]
    x = _residual(spec, x, given, "middle_in", -1, epsilon)
    x = _transformer(spec, x, given, "middle_transformer", -1, False)
    if spec.stack or (spec.motion and spec.motion.middle):
        x = _motion(spec, x, given, "middle_motion", -1)
    return _residual(spec, x, given, "middle_out", -1, epsilon)


def _block(
    spec: LatentUNet, x: Float[Array, "B T H W C"], given: Given, name: str, i: int, epsilon: float
) -> Float[Array, "B T H W O"]:
    """A residual block of level `i` and the transformers after it."""
    x = _residual(spec, x, given, name, i, epsilon)
    if spec.attention[i]:
        x = _transformer(spec, x, given, f"{name}_transformer", i, spec.only_context[i])
    if spec.motion or (spec.stack and spec.attention[i]):
        x = _motion(spec, x, given, f"{name}_motion", i)
    return x


def _at(given: Given, i: int) -> Given:
    """What the blocks of a level see."""
    return given if given.known is None else given._replace(known=given.known[i])


def _transformer(spec: LatentUNet, x: Array, given: Given, name: str, i: int, only_context: bool) -> Array:
    if not spec.context_channels:
        return FactorisedAttention(spec.heads[i], sizes_of(spec), name=name)(x, given)
    return TokenTransformer(spec.heads[i], sizes_of(spec), only_context, name=name)(x, _at(given, i))


def _residual(spec: LatentUNet, x: Array, given: Given, name: str, i: int, epsilon: float) -> Array:
    x = LatentBlock(spec.widths[i], sizes_of(spec), epsilon, name=name)(x, _at(given, i))
    if not spec.stack:
        return x
    convolutions = FrameConvolutions(sizes_of(spec), spec.stack.dropout, name=f"{name}_frames")
    return convolutions(x, given.images, given.train)


def _motion(spec: LatentUNet, x: Array, given: Given, name: str, i: int) -> Array:
    if spec.motion:
        return motion_module(spec.motion, sizes_of(spec), x.shape[-1], name)(x, given.images)
    module = FrameTransformer(spec.heads[i], x.shape[-1] // spec.heads[i], spec.groups, sizes_of(spec), name=name)
    return module(x, given.images)


def _controlled(skips: list[Array], x: Array, control: Control) -> tuple[list[Array], Array]:
    """Raises `UserError` for a control that was made by a network of other sizes."""
    wanted, found = [a.shape for a in (*skips, x)], [a.shape for a in (*control.skips, control.middle)]
    if wanted != found:
        raise UserError(f"control of shapes {found}; permitted: {wanted}")
    added = [a + b.astype(a.dtype) for a, b in zip(skips, control.skips, strict=True)]
    return added, x + control.middle.astype(x.dtype)
