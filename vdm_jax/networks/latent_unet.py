"""The U-Nets of open latent models, layer for layer: Stable Diffusion 1.x and 2.x and the video models made of them.

They are assemblies of their own of the blocks of all networks, and not configs of `unet.py`, because weights fit one
order of layers only. Any attention pattern may take the place of theirs: `spatial_pattern=SparseCausal()` makes an
image network one of videos (Tune-A-Video: Wu et al. 2022, arXiv 2212.11565), and an `WithExtraKeys` one lets it see the
reference features that `reference_tokens` takes from another (ReferenceNet: Hu et al. 2023, arXiv 2311.17117). A video
network without its temporal layers is the image network (Blattmann et al. 2023, arXiv 2311.15127).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.attention import AttentionPattern, SparseCausal, Spatial, Temporal, TemporalCausal, WithExtraKeys
from vdm_jax.attention.after_softmax import check_masked_after
from vdm_jax.attention.capability import require
from vdm_jax.configuration import Count, Depth, Positive, Size, SizeOrZero, Width, WidthOrZero, config
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.blocks import Double
from vdm_jax.networks.blocks.sinusoids import sinusoids
from vdm_jax.networks.directed import Directed
from vdm_jax.networks.latent_frames import (
    MOTION_V1,
    MOTION_V2,
    MOTION_V3,
    Motion,
    TemporalConv,
    frame_convolutions,
    motion_module,
)
from vdm_jax.networks.latent_unet_blocks import (
    BlockInputs,
    Control,
    FactorisedAttention,
    LatentBlock,
    Sizes,
    TokenTransformer,
    level_code,
)
from vdm_jax.networks.layers import Convolution, Dense, silu, zeros
from vdm_jax.networks.remat import name_input, rematerialised
from vdm_jax.parallel.rules import shard_along


@config
class LatentUNet:
    """Sizes of a U-Net, by level from the finest on; the defaults are those of Stable Diffusion 1.x."""

    in_channels: Width = 4  # of the noisy latents and what is joined to them: masks, depth, latents of an image
    out_channels: Size = 4
    widths: tuple[Width, ...] = (320, 640, 1280, 1280)  # channels
    blocks: Depth = 2  # residual blocks on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)  # whether a transformer follows each block
    heads: tuple[Size, ...] = (8, 8, 8, 8)
    only_cross_attention: tuple[bool, ...] = (False, False, False, False)  # no attention among tokens
    # Of the text or image tokens; 0: takes none (with `max_relative_position` only)
    token_channels: WidthOrZero = 768
    # Cross-attention has keys and values of its own for the tokens of a picture (`image_prompt.py`)
    image_prompt: bool = False
    use_linear_projection: bool = False  # maps around transformers stored as matrices (2.x), else as convolutions (1.x)
    classes: WidthOrZero = 0  # of a table added to the embedding: noise levels of the low-resolution input
    scalars: SizeOrZero = 0  # numbers added to the embedding: frames per second, motion, noise of the image
    scalar_channels: Width = 256  # of the code of each
    # Of the code of the guidance's weight, which joins that of the noise level (latent consistency models: Luo et al.
    # 2023, arXiv 2310.04378); 256 published, 0: takes no weight
    weight_channels: WidthOrZero = 0
    temporal: bool = False  # temporal layers mixed with those within, by learned shares
    temporal_conv: TemporalConv | None = None  # temporal layers after those within
    motion: Motion | None = None  # motion modules after each block
    # Furthest offset that temporal attention after each spatial attention distinguishes (LVDM); 0: none
    max_relative_position: SizeOrZero = 0
    # Temporal attention after the feed-forward of each transformer (Tune-A-Video: Wu et al. 2022, arXiv 2212.11565)
    temporal_attention: bool = False
    # Channels inside a temporal convolution after that (Follow Your Pose: Ma et al. 2023, arXiv 2304.01186); 0: none
    temporal_rank: WidthOrZero = 0
    directed: Directed | None = None  # temporal attention with spatial attention, and adaptors of frames
    mix_frames: SizeOrZero = 0  # that have a learned share each, with `temporal`; 0: all frames have the same
    # Of conditioning frames and their mask, which the temporal layers see, with `temporal`
    conditioning_channels: WidthOrZero = 0
    # Statistics of the norms; residual: of the clip, and in transformers of the frame (Tune-A-Video's code)
    norm_over: Literal["frame", "clip", "residual"] = "frame"
    scale_shift_norm: bool = False  # the embedding scales and shifts norms in residual blocks, and is not added
    groups: Count = 32  # of the norms
    # Of the norms in residual blocks: on the way down with and without attention, in the middle, on the way up.
    epsilons: tuple[Positive, Positive, Positive, Positive] = (1e-5, 1e-5, 1e-5, 1e-5)
    spatial_pattern: AttentionPattern = Spatial()  # of the spatial layers
    temporal_pattern: AttentionPattern = Temporal()  # of the temporal layers
    attention_kernel: str = "auto"  # see `vdm_jax.attention`
    attention_context: str = "none"  # of attention between frames; spatial attention has nothing to exchange
    sharded_axis: Literal["frames", "height"] = "frames"  # what of a video is split over the mesh axis `context`
    dtype: str = "float32"  # of the activations
    remat: Literal["none", "dots", "full", "offload"] = "none"  # what the backward pass recomputes; networks/remat.py

    @property
    def video(self) -> bool:
        """Whether there are temporal layers."""
        return bool(self.temporal or self.temporal_conv or self.motion or self.max_relative_position
                    or self.temporal_attention or self.directed)

    def __post_init__(self):
        levels = len(self.widths)
        for name in ("attention", "heads", "only_cross_attention"):
            if len(getattr(self, name)) != levels:
                raise UserError(f"LatentUNet.{name}={getattr(self, name)} for {levels} levels; permitted: an entry "
                                "each")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % self.groups or width % heads:
                raise UserError(f"LatentUNet.widths={self.widths} with heads={self.heads}, groups={self.groups}; "
                                "permitted: multiples of both")
            if self.motion and (width % self.motion.heads or width % self.motion.groups):
                raise UserError(f"LatentUNet.widths={self.widths} with {self.motion}; permitted: multiples of its "
                                "heads and groups")
        kinds = {name: getattr(self, name) for name in
                 ("temporal", "temporal_conv", "motion", "max_relative_position", "temporal_attention",
                  "directed")}
        if sum(map(bool, kinds.values())) > 1:
            raise UserError(f"LatentUNet: {', '.join(f'{name}={value}' for name, value in kinds.items())}; permitted: "
                            "one kind of temporal layers")
        if self.temporal_rank and not (self.temporal_attention and self.temporal_rank <= min(self.widths)):
            raise UserError(f"LatentUNet.temporal_rank={self.temporal_rank} with temporal_attention="
                            f"{self.temporal_attention}, widths={self.widths}; permitted: 0, or up to the smallest "
                            "width with temporal_attention=True")
        if not self.temporal and (self.mix_frames or self.conditioning_channels):
            raise UserError(f"LatentUNet: mix_frames={self.mix_frames}, "
                            f"conditioning_channels={self.conditioning_channels} with temporal=False; permitted: 0")
        self._check_attention()
        if self.image_prompt and not self.token_channels:
            raise UserError("LatentUNet.image_prompt=True with token_channels=0; permitted: a network that attends to "
                            "tokens")
        if not self.token_channels and not self.max_relative_position:
            raise UserError("LatentUNet: token_channels=0 with max_relative_position=0; permitted: "
                            "max_relative_position above 0 there")

    def _check_attention(self) -> None:
        """Raise `UserError` for patterns that the kernel and context cannot compute, and outside tokens over time."""
        if isinstance(self.temporal_pattern, WithExtraKeys):
            raise UserError("LatentUNet.temporal_pattern=WithExtraKeys(...); permitted: patterns of the video alone, "
                            "and WithExtraKeys in spatial_pattern")
        for pattern in (self.spatial_pattern, self.temporal_pattern):
            context = "none" if pattern.layout == "frames" else self.attention_context
            furthest = self.temporal_conv.max_relative_position if self.temporal_conv else self.max_relative_position
            relative = bool(furthest) and pattern is self.temporal_pattern
            require(pattern, self.attention_kernel, context, extra_keys=isinstance(pattern, WithExtraKeys),
                    bias=relative, offset_values=relative)
        if self.directed and self.directed.mask == "after":
            check_masked_after(self.temporal_pattern, self.attention_kernel, self.attention_context)

    @property
    def transformers(self) -> dict[str, int]:
        """Name of every transformer and its channels, in the order in which the network applies them."""
        down = {f"down_{i}_{j}_transformer": width for i, width in enumerate(self.widths) if self.attention[i]
                for j in range(self.blocks)}
        up = {f"up_{k}_{j}_transformer": self.widths[i] for k, i in enumerate(reversed(range(len(self.widths))))
              if self.attention[i] for j in range(self.blocks + 1)}
        return {**down, "middle_transformer": self.widths[-1], **up}

    @property
    def referenced(self) -> dict[str, int]:
        """The transformers that see reference tokens, and their channels: with an `WithExtraKeys` spatial pattern those
        that have attention among the tokens of the video."""
        if not isinstance(self.spatial_pattern, WithExtraKeys):
            return {}
        alone = {f"{way}_{i if way == 'down' else len(self.widths) - 1 - i}_" for way in ("down", "up")
                 for i, only_cross_attention in enumerate(self.only_cross_attention) if only_cross_attention}
        return {name: width for name, width in self.transformers.items() if not name.startswith(tuple(alone))}


LATENT_UNET_SD1 = LatentUNet()
LATENT_UNET_SD1_INPAINT = LatentUNet(in_channels=9)
LATENT_UNET_SD2 = LatentUNet(heads=(5, 10, 20, 20), token_channels=1024, use_linear_projection=True)
LATENT_UNET_SD2_DEPTH = dataclasses.replace(LATENT_UNET_SD2, in_channels=5)
LATENT_UNET_UPSCALER = LatentUNet(
    in_channels=7, widths=(256, 512, 512, 1024), attention=(False, True, True, True), token_channels=1024,
    only_cross_attention=(True, True, True, False), use_linear_projection=True, classes=1000)
# The released weights run with these epsilons in diffusers; the authors' own code has 1e-5 everywhere.
LATENT_UNET_SVD = dataclasses.replace(LATENT_UNET_SD2, in_channels=8, scalars=3, temporal=True,
                                      epsilons=(1e-6, 1e-5, 1e-5, 1e-6))
LATENT_UNET_MODELSCOPE = dataclasses.replace(LATENT_UNET_SD2, temporal_conv=TemporalConv())
# Make-Your-Video (Xing et al. 2023, arXiv 2306.00943), which sees a depth map as a fifth channel
LATENT_UNET_MAKE_YOUR_VIDEO = dataclasses.replace(
    LATENT_UNET_SD2_DEPTH, temporal_conv=TemporalConv(spatial=True, stem=False, max_relative_position=16),
    temporal_pattern=TemporalCausal(window=16))
# Video LDM (Blattmann et al. 2023, arXiv 2304.08818): the temporal layers of its published sizes (656M; 649M on 1.x)
# are those of Stable Video Diffusion. Its prediction and interpolation networks see conditioning frames; that of
# interpolation, of 1,509M, has the sizes of 1.x. A class tells it which of the two rates to make.
LATENT_UNET_VIDEO_LDM = dataclasses.replace(LATENT_UNET_SD2, temporal=True)
LATENT_UNET_VIDEO_LDM_SD1 = dataclasses.replace(LATENT_UNET_SD1, temporal=True)
LATENT_UNET_VIDEO_LDM_PREDICTION = dataclasses.replace(LATENT_UNET_VIDEO_LDM, conditioning_channels=5)
LATENT_UNET_VIDEO_LDM_INTERPOLATION = dataclasses.replace(LATENT_UNET_VIDEO_LDM_SD1, conditioning_channels=5, classes=2)
LATENT_UNET_VIDEO_LDM_UPSCALER = dataclasses.replace(LATENT_UNET_UPSCALER, temporal=True)
# LVDM (He et al. 2022, arXiv 2211.13221). The input of prediction and interpolation has a mask; the class is the
# timestep to which the conditioning latents are noised.
LATENT_UNET_LVDM = LatentUNet(
    widths=(256, 512, 768, 1024), blocks=3, attention=(False, True, True, True), heads=(4, 4, 4, 4),
    token_channels=0, max_relative_position=4, norm_over="clip", scale_shift_norm=True)
LATENT_UNET_LVDM_PREDICTION = dataclasses.replace(LATENT_UNET_LVDM, in_channels=5, classes=251)
LATENT_UNET_LVDM_INTERPOLATION = dataclasses.replace(LATENT_UNET_LVDM_PREDICTION, max_relative_position=5)
LATENT_UNET_LVDM_TEXT = dataclasses.replace(LATENT_UNET_SD1, max_relative_position=16, norm_over="clip")
# Tune-A-Video (Wu et al. 2022, arXiv 2212.11565), tuned on one video
LATENT_UNET_TUNE_A_VIDEO = dataclasses.replace(
    LATENT_UNET_SD1, temporal_attention=True, norm_over="residual",
    spatial_pattern=SparseCausal(first=True, previous=True, own=False))
# Follow Your Pose (Ma et al. 2023, arXiv 2304.01186): the same with low-rank temporal convolutions
LATENT_UNET_FOLLOW_YOUR_POSE = dataclasses.replace(LATENT_UNET_TUNE_A_VIDEO, temporal_rank=160)
# MagicVideo (Zhou et al. 2022, arXiv 2211.11018), whose sizes are not known to us: on Stable Diffusion's
LATENT_UNET_MAGIC_VIDEO = dataclasses.replace(
    LATENT_UNET_SD1, scalars=1, directed=Directed(), temporal_pattern=TemporalCausal())
LATENT_UNET_ANIMATEDIFF_V1, LATENT_UNET_ANIMATEDIFF_V2, LATENT_UNET_ANIMATEDIFF_V3 = (
    dataclasses.replace(LATENT_UNET_SD1, motion=motion) for motion in (MOTION_V1, MOTION_V2, MOTION_V3))


def image_unet(unet: LatentUNet) -> LatentUNet:
    """The image network that a video network is without its temporal layers, norms per frame. Raises `UserError`
    where it has no other attention."""
    return dataclasses.replace(unet, temporal=False, temporal_conv=None, motion=None, max_relative_position=0,
                               temporal_attention=False, temporal_rank=0, directed=None, mix_frames=0,
                               conditioning_channels=0, norm_over="frame", image_prompt=False,
                               spatial_pattern=Spatial(), temporal_pattern=Temporal())


def reference_net_of(unet: LatentUNet) -> LatentUNet:
    """The sizes of the network that a U-Net takes reference tokens from: its image layers, without scalars or a
    class (ReferenceNet: Hu et al. 2023, arXiv 2311.17117)."""
    return dataclasses.replace(image_unet(unet), scalars=0, classes=0, weight_channels=0)


# ------------------------------------------------ parts, which make their layers in the network that calls them


def check(
    spec: LatentUNet, x: Array, tokens: Array | None, scalars: Array | None, classes: Array | None,
    conditioning_latents: Array | None = None,
) -> None:
    """Raises `UserError` for inputs of a shape that the network does not take."""
    if x.shape[-1] != spec.in_channels:
        raise UserError(f"latents of shape {x.shape}; permitted: {spec.in_channels} channels")
    if spec.motion and x.shape[1] > spec.motion.frames:
        raise UserError(f"latents of {x.shape[1]} frames; permitted: at most Motion.frames={spec.motion.frames}")
    shape = (0, 0, 0, 0) if tokens is None else tokens.shape
    if len(shape) != 4 or (shape[1] not in (1, x.shape[1]) and spec.token_channels) or (
            shape[3] != spec.token_channels):
        shapes = f"[B, 1 or frames, tokens, {spec.token_channels}]" if spec.token_channels else "none"
        raise UserError(f"tokens of shape {shape} for {x.shape[1]} frames; permitted: {shapes}")
    wanted = (None if not spec.scalars else (len(x), spec.scalars), None if not spec.classes else (len(x),),
              None if not spec.conditioning_channels else (*x.shape[:4], spec.conditioning_channels))
    found = tuple(None if a is None else a.shape for a in (scalars, classes, conditioning_latents))
    if found != wanted:
        raise UserError(f"scalars and classes and conditioning frames of shape {found}; permitted: {wanted}")


def sizes_of(spec: LatentUNet) -> Sizes:
    """What all blocks share."""
    return Sizes(spec.groups, spec.temporal, spec.use_linear_projection, spec.attention_kernel, jnp.dtype(spec.dtype),
                 spec.attention_context, spec.norm_over, spec.scale_shift_norm, spec.mix_frames,
                 spec.max_relative_position, spec.spatial_pattern, spec.temporal_pattern, spec.sharded_axis,
                 spec.temporal_attention, spec.temporal_rank, spec.directed)


def embed(
    module: nn.Module, spec: LatentUNet, level: Float[Array, " B"] | Float[Array, "B T"],
    scalars: Float[Array, "B N"] | None = None, classes: Int[Array, " B"] | None = None,
    weight: Float[Array, " B"] | None = None,
) -> Float[Array, "B G E"]:
    """The vector that residual blocks see, of noise level (of the clip or of each frame), weight of the guidance,
    scalars and class; its table is a parameter of `module`."""
    dtype, channels = jnp.dtype(spec.dtype), 4 * spec.widths[0]

    def hidden(code: Array, name: str) -> Array:
        h = silu(Dense(channels, dtype=dtype, name=f"{name}_in")(code))
        return Dense(channels, dtype=dtype, name=f"{name}_out")(h)

    code = level_code(level if level.ndim == 2 else level[:, None], spec.widths[0])
    if spec.weight_channels:
        weights = sinusoids(1000 * weight, spec.weight_channels)[:, None]
        code = code + Dense(spec.widths[0], use_bias=False, kernel_init=zeros, dtype=dtype, name="weight")(weights)
    embedding = hidden(code, "level")
    if spec.scalars:
        code = level_code(scalars, spec.scalar_channels)
        embedding = embedding + hidden(code.reshape(len(code), 1, -1), "scalars")
    if spec.classes:
        table = module.param("classes", nn.initializers.normal(1.0), (spec.classes, channels))
        embedding = embedding + table[classes].astype(dtype)[:, None]
    return embedding


def conditioning_by_level(spec: LatentUNet, conditioning_latents: Float[Array, "B T H W M"]) -> tuple[Array, ...]:
    """Conditioning frames and their mask at the resolution of each level, by learned convolutions."""
    levels, dtype = [conditioning_latents.astype(spec.dtype)], jnp.dtype(spec.dtype)
    for i in range(len(spec.widths) - 1):
        halve = Convolution(spec.conditioning_channels, strides=(2, 2), dtype=dtype, sharded_axis=spec.sharded_axis,
                            name=f"known_{i}")
        levels.append(halve(levels[-1]))
    return tuple(levels)


def way_down(
    module: nn.Module, spec: LatentUNet, x: Float[Array, "B T H W C"], block_inputs: BlockInputs,
    features: tuple[Float[Array, "B T _ _ _"], ...] | None = None,
) -> tuple[Float[Array, "B T H2 W2 C2"], list[Array]]:
    """The blocks before the middle; returns their output and what the way up sees of them, `x` first. `features` are
    added to the last block of each level."""
    skips = [x]
    for step in steps_down(module, spec, block_inputs, features):
        skips.append(step(skips[-1]))
    return skips[-1], skips


def steps_down(
    module: nn.Module, spec: LatentUNet, block_inputs: BlockInputs,
    features: tuple[Float[Array, "B T _ _ _"], ...] | None = None,
) -> list[Callable[[Array], Array]]:
    """From each skip connection to the next, as in `way_down`."""
    steps, last, dtype = [], len(spec.widths) - 1, jnp.dtype(spec.dtype)

    def block(x: Array, i: int, j: int) -> Array:
        epsilon = spec.epsilons[0 if spec.attention[i] else 1]
        x = _block(module, spec, x, block_inputs, f"down_{i}_{j}", i, epsilon)
        return x if features is None or j + 1 < spec.blocks else x + features[i].astype(dtype)

    def halve(x: Array, i: int) -> Array:
        return Convolution(spec.widths[i], strides=(2, 2), dtype=dtype, sharded_axis=spec.sharded_axis,
                           name=f"downsample_{i}")(x)

    for i in range(last + 1):
        steps += [partial(block, i=i, j=j) for j in range(spec.blocks)] + [partial(halve, i=i)] * (i < last)
    return steps


def steps_up(
    module: nn.Module, spec: LatentUNet, block_inputs: BlockInputs, control: Control | None
) -> list[Callable[[Array, Array], Array]]:
    """`(x, skip) -> x` of each skip connection, the last one first, with what a ControlNet adds to it."""
    levels, count, dtype = len(spec.widths), spec.blocks + 1, jnp.dtype(spec.dtype)

    def step(x: Array, skip: Array, k: int, j: int) -> Array:
        if k and not j:  # a side that was odd is one pixel shorter than twice
            x = Double(dtype, name=f"upsample_{k - 1}", shape=skip.shape[2:4])(x)
        skip = controlled(spec, skip, control, (levels - k) * count - 1 - j)
        x = jnp.concatenate([x, skip], axis=-1)
        return _block(module, spec, x, block_inputs, f"up_{k}_{j}", levels - 1 - k, spec.epsilons[3])

    return [partial(step, k=k, j=j) for k in range(levels) for j in range(count)]


def middle(
    module: nn.Module, spec: LatentUNet, x: Float[Array, "B T H W C"], block_inputs: BlockInputs
) -> Float[Array, "B T H W C"]:
    """Two residual blocks at the coarsest level, with a transformer between them."""

    def layers(module: nn.Module, x: Array, block_inputs: BlockInputs) -> Array:
        x, epsilon = name_input(x, spec.remat), spec.epsilons[2]
        x = _residual(spec, x, block_inputs, "middle_in", -1, epsilon)
        x = _transformer(spec, x, block_inputs, "middle_transformer", -1, False)
        if spec.temporal_conv or (spec.motion and spec.motion.middle):
            x = _motion(spec, x, block_inputs, "middle_motion", -1)
        return _residual(spec, x, block_inputs, "middle_out", -1, epsilon)

    return shard_along(rematerialised(module, layers, spec.remat)(module, x, _at(block_inputs, -1)),
                       spec.sharded_axis, must=False)


def _block(
    module: nn.Module, spec: LatentUNet, x: Float[Array, "B T H W C"], block_inputs: BlockInputs, name: str, i: int,
    epsilon: float
) -> Float[Array, "B T H W O"]:
    """A residual block of level `i` and the transformers after it, rematerialised as one."""

    def layers(module: nn.Module, x: Array, block_inputs: BlockInputs) -> Array:
        x = _residual(spec, name_input(x, spec.remat), block_inputs, name, i, epsilon)
        if spec.attention[i]:
            x = _transformer(spec, x, block_inputs, f"{name}_transformer", i, spec.only_cross_attention[i])
        if spec.motion or (spec.temporal_conv and spec.attention[i]):
            x = _motion(spec, x, block_inputs, f"{name}_motion", i)
        return x

    return shard_along(rematerialised(module, layers, spec.remat)(module, x, _at(block_inputs, i)),
                       spec.sharded_axis, must=False)


def _at(block_inputs: BlockInputs, i: int) -> BlockInputs:
    """What the blocks of a level see."""
    levels = block_inputs.conditioning_latents
    return block_inputs if levels is None else block_inputs.replace(conditioning_latents=levels[i])


def _transformer(spec: LatentUNet, x: Array, block_inputs: BlockInputs, name: str, i: int,
                 only_cross_attention: bool) -> Array:
    block_inputs = block_inputs.replace(references=(block_inputs.references or {}).get(name))
    if not spec.token_channels:
        return FactorisedAttention(spec.heads[i], sizes_of(spec), name=name)(x, block_inputs)
    return TokenTransformer(spec.heads[i], sizes_of(spec), only_cross_attention, name=name)(x, block_inputs)


def _residual(spec: LatentUNet, x: Array, block_inputs: BlockInputs, name: str, i: int, epsilon: float) -> Array:
    x = LatentBlock(spec.widths[i], sizes_of(spec), epsilon, name=name)(x, block_inputs)
    if not spec.temporal_conv:
        return x
    return frame_convolutions(spec.temporal_conv, sizes_of(spec), f"{name}_frames")(x, train=block_inputs.train)


def _motion(spec: LatentUNet, x: Array, block_inputs: BlockInputs, name: str, i: int) -> Array:
    if spec.motion:
        return motion_module(spec.motion, sizes_of(spec), x.shape[-1], name)(x)
    furthest = spec.temporal_conv.max_relative_position
    return sizes_of(spec).temporal_transformer(spec.heads[i], x.shape[-1], name, furthest)(x)


def controlled(spec: LatentUNet, x: Array, control: Control | None, number: int) -> Array:
    """The features of a skip connection by its number, or of the middle (-1), with what a ControlNet adds to them.
    Raises `UserError` for a control that was made by a network of other sizes."""
    if control is None:
        return x
    parts, count = (*control.skips, control.middle), len(spec.widths) * (spec.blocks + 1) + 1
    if len(parts) != count or parts[number].shape != x.shape:
        raise UserError(f"control of shapes {[part.shape for part in parts]}; permitted: {count}, with {x.shape} in "
                        f"place {number % count}")
    return x + parts[number].astype(x.dtype)
