"""The space-time U-Net: one module for base, temporal and spatial super-resolution, and image networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.networks import config as cfg
from vdm_jax.networks.blocks.attention import Tokens
from vdm_jax.networks.blocks.residual import ResidualBlock
from vdm_jax.networks.blocks.sinusoids import sinusoids
from vdm_jax.networks.control_net import residuals_of
from vdm_jax.networks.latent_unet_blocks import Control
from vdm_jax.networks.layers import (
    Convolution,
    Dense,
    GroupNorm,
    depth_to_space,
    depth_to_time,
    silu,
    space_to_depth,
    time_to_depth,
    zeros,
)
from vdm_jax.networks.mixers import FramePyramid, MixerInputs, Mixers
from vdm_jax.networks.remat import name_input, rematerialised
from vdm_jax.networks.resampling import convolution_options, downsampled, every, upsampled
from vdm_jax.networks.skips import Deep, through_skips
from vdm_jax.networks.sound import SoundTokens, grouped
from vdm_jax.networks.text import TextConditioner
from vdm_jax.networks.unet_inputs import check_inputs, stack_inputs
from vdm_jax.parallel.rules import shard_along

FEATURES = "features"  # collection in which a call may ask for the features of the middle, as "middle"
Run = Callable[..., Array]  # a block of the network: `run(x, level, mixers, name, resized=None)`


def encode_level(logsnr: Float[Array, " ..."], encoding: str) -> Float[Array, " ..."]:
    """Noise level as a number of order 1000, ready for sinusoids: 1000 times one of the following.

    `inv_cos` is the time at which the cosine schedule has log-SNR lambda, arctan(exp(-lambda/2)) / (pi/2), as in the
    code of Salimans & Ho 2022, arXiv 2202.00512; `linear` maps [-20, 20] to [1, 0]; `edm` is ln(sigma / alpha) / 4
    (Karras et al. 2022, arXiv 2206.00364, table 1).
    """
    if encoding == "inv_cos":
        return 1000 * jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20.0, 20.0))) / (0.5 * jnp.pi)
    if encoding == "linear":
        return 1000 * (20 - jnp.clip(logsnr, -20.0, 20.0)) / 40
    return 1000 * -logsnr / 8


def residual_block(
    spec: cfg.UNet, channels: int, kernel: int, dropout: float = 0.0,
    resized: Callable[[Array], Array] | None = None, name: str | None = None,
) -> ResidualBlock:
    """The residual block of a network, with factorised convolutions (1x3x3); it starts as the identity."""
    return ResidualBlock(
        channels, (1, kernel, kernel), spec.norm_over, spec.groups, 1e-5,
        scale_shift_norm=spec.modulation == "scale_shift",
        vector_name="modulation", vector_dtype=jnp.float32, dropout=dropout, resized=resized, shortcut=spec.shortcut,
        residual_scale=spec.residual_scale, out_init=zeros, name=name, **convolution_options(spec))


class Block(nn.Module):
    """A residual block and the level's mixers after it."""

    config: cfg.UNet
    level: cfg.Level
    mixers: tuple[cfg.Mixer, ...]
    resized: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Array, vector: Array, mixer_inputs: MixerInputs, train: bool, images: int) -> Array:
        level = self.level
        x = name_input(x, self.config.remat)
        residual = residual_block(self.config, level.channels, level.kernel, level.dropout, self.resized, "residual")
        x = residual(x, vector, train, images, mixer_inputs.frame_valid)
        return shard_along(Mixers(self.config, self.mixers, name="mixers")(x, mixer_inputs, images),
                           self.config.sharded_axis)


class BlockInputs(NamedTuple):
    """What a network gives its blocks next to their features."""

    vector: Float[Array, "B _ C"]
    mixer_inputs: MixerInputs
    train: bool
    images: int

    def valid(self, spec: cfg.UNet) -> Bool[Array, "B _"] | None:
        """Which frames exist, of those that the first convolution sees; None: all."""
        return self.mixer_inputs.every(spec.temporal_patch).frame_valid


def pack(spec: cfg.UNet, x: Float[Array, "B T H W C"]) -> Float[Array, "B _ _ _ _"]:
    """A video as the patches, or tubelets, of the network."""
    return time_to_depth(space_to_depth(x, spec.patch), spec.temporal_patch)


def begin(spec: cfg.UNet, packed: Float[Array, "B T H W C"], given: BlockInputs) -> Float[Array, "B T H W _"]:
    """The first features: a convolution of the patches and their places, in the module that calls it."""
    options = convolution_options(spec)
    stem = Convolution(spec.levels[0].channels, (1, spec.stem_kernel, spec.stem_kernel), name="stem", **options)
    x = stem(packed.astype(options["dtype"]), given.images, given.valid(spec))
    x = shard_along(x, spec.sharded_axis)
    if spec.position_period:
        x = PositionEmbedding(spec.position_period, spec.position_axes, name="positions")(x, given.images)
    return x


def running(module: nn.Module, spec: cfg.UNet, frames: int, given: BlockInputs) -> Run:
    """How blocks of `module` run, on features of clips of so many frames."""
    block = rematerialised(module, Block, spec.remat, static_argnums=(4, 5))

    def run(x: Array, level: cfg.Level, mixers: tuple[cfg.Mixer, ...], name: str,
            resized: Callable[[Array], Array] | None = None) -> Array:
        stride = frames // x.shape[1]  # of time, down to this level
        return block(spec, level, mixers, resized, name=name)(
            x, every(given.vector, stride), given.mixer_inputs.every(stride), given.train, given.images)

    return run


class SpaceTimeUNet(nn.Module):
    """U-Net over `[B, T, H, W, C]`. Call it with the noisy video, its log-SNR, `[B]` or per frame
    `[B, T]`, and the conditioning.

    `images` says how many frames at the end are independent images (joint training): they share the spatial layers,
    and no temporal layer lets them see the clip or each other. `deep` is where the features inside a skip connection
    come from.
    """

    config: cfg.UNet

    @nn.compact
    def __call__(
        self, z: Float[Array, "B T H W C"], logsnr: Float[Array, " B"] | Float[Array, "B T"],
        conditioning: Conditioning | None = None, *, train: bool = False, images: int = 0, deep: Deep | None = None,
    ) -> Float[Array, "B T H W O"]:
        spec, options = self.config, convolution_options(self.config)
        conditioning = Conditioning() if conditioning is None else conditioning
        check_inputs(spec, z, conditioning, images)
        vector, mixer_inputs = Embedding(spec, name="embedding")(z.shape[1], logsnr, conditioning, images)
        if spec.injected:
            given = space_to_depth(conditioning.conditioning_frames, spec.patch), conditioning.conditioning_mask
            mixer_inputs = mixer_inputs.replace(frames=FramePyramid(spec, name="frames")(*given))
        given = BlockInputs(vector, mixer_inputs, train, images)
        packed = pack(spec, stack_inputs(spec, z, conditioning))
        control = added_control(spec, packed, conditioning, given)
        x, run, valid = begin(spec, packed, given), running(self, spec, z.shape[1], given), given.valid(spec)
        if spec.resample_order == "after":
            x = down_and_up(spec, run, x, images, valid, deep, control, lambda x: self.sow(FEATURES, "middle", x))
        else:
            x = efficient_down_and_up(spec, run, x, images, valid, deep)
        x = silu(GroupNorm(spec.groups, spec.norm_over, name="norm")(x))
        kernel = (1, spec.out_kernel, spec.out_kernel)
        features = spec.out_channels * spec.patch**2 * spec.temporal_patch
        options["dtype"] = jnp.dtype("float32")
        convolution = Convolution(features, kernel, kernel_init=zeros, name="out", **options)
        change = depth_to_time(convolution(x.astype(jnp.float32), images, valid), spec.temporal_patch)
        change = depth_to_space(change, spec.patch)
        return change + conditioning.low_resolution if spec.residual else change


class ControlBranch(nn.Module):
    """A ControlNet (Zhang et al. 2023, arXiv 2302.05543) of the space-time U-Net: a copy of its first convolution, its
    way down and its middle, temporal layers included, which sees a map of each frame as well. It starts with zeros.

    The map is cut into the patches of the network, convolved twice, the second time by zeros at the start, and added to
    the first features. Noise level and prompt are embedded once, by the U-Net.
    """

    config: cfg.UNet

    @nn.compact
    def __call__(
        self, packed: Float[Array, "B T H W C"], hint: Float[Array, "B T2 H2 W2 D"], given: BlockInputs,
        scale: Float[Array, " B"] | float, guess: Float[Array, " B"] | None,
    ) -> Control:
        spec, images, valid = self.config, given.images, given.valid(self.config)
        width, options = spec.levels[0].channels, convolution_options(spec)
        h = shard_along(pack(spec, hint).astype(options["dtype"]), spec.sharded_axis)
        h = silu(Convolution(width, name="hint_in", **options)(h, images, valid))
        h = Convolution(width, kernel_init=zeros, name="hint_out", **options)(h, images, valid)
        run = running(self, spec, hint.shape[1], given)
        skips = [shard_along(begin(spec, packed, given) + h, spec.sharded_axis)]
        for step in way_down(spec, run, images, valid):
            skips.append(step(skips[-1]))
        return residuals_of(skips, middle_of(spec, run, skips[-1]), scale, guess, options["dtype"])


def added_control(
    spec: cfg.UNet, packed: Float[Array, "B T H W C"], conditioning: Conditioning, given: BlockInputs
) -> Control | None:
    """The sum of what the branches of all maps add, each by its factor and in guess mode where that is asked for."""
    found = [ControlBranch(spec, name=f"control_net_{entry.name}")(
        packed, conditioning.inputs[entry.name], given, conditioning.scalars.get(f"{entry.name}_scale", 1.0),
        conditioning.scalars.get(f"{entry.name}_guess")) for entry in spec.entering("residuals")]
    return jax.tree.map(lambda *parts: sum(parts), *found) if found else None


def way_down(spec: cfg.UNet, run: Run, images: int, frame_valid: Array | None) -> list[Callable[[Array], Array]]:
    """From the features of each skip connection to those of the next, in the usual order: blocks, then the
    reduction."""
    down = []

    def reduced(x: Array, i: int) -> Array:
        return shard_along(downsampled(spec, run, i, x.shape[-1], x, images, frame_valid), spec.sharded_axis)

    for i, level in enumerate(spec.levels):
        down += [partial(run, level=level, mixers=mixers_at(level, j, level.blocks), name=f"down_{i}_{j}")
                 for j in range(level.blocks)]
        down += [partial(reduced, i=i)] * (i + 1 < len(spec.levels))
    return down


def middle_of(spec: cfg.UNet, run: Run, x: Array) -> Array:
    """The middle of the usual order."""
    return run(run(x, spec.levels[-1], spec.middle, "middle_in"), spec.levels[-1], (), "middle_out")


def down_and_up(
    spec: cfg.UNet, run: Run, x: Array, images: int, frame_valid: Array | None, deep: Deep | None = None,
    control: Control | None = None, keep: Callable[[Array], Any] = lambda x: None,
) -> Array:
    """The levels in the usual order: blocks, then the reduction; every block and reduction has a long skip. `control`
    is added to the skips and to the middle, whose features `keep` is called with."""
    down, up = way_down(spec, run, images, frame_valid), []
    added = [None] * (len(down) + 1) if control is None else control.skips

    def middle(x: Array) -> Array:
        x = middle_of(spec, run, x)
        keep(x)
        return x if control is None else x + control.middle

    def back(x: Array, skip: Array, i: int, j: int, number: int) -> Array:
        level = spec.levels[i]
        skip = skip if added[number] is None else skip + added[number]
        x = jnp.concatenate([x, skip * spec.skip_scale], axis=-1)
        x = run(x, level, mixers_at(level, j, level.blocks + 1), f"up_{i}_{j}")
        if j < level.blocks or not i:
            return x
        return upsampled(spec, run, i, spec.levels[i - 1], x.shape[-1], x, images, frame_valid)

    for i, level in reversed(list(enumerate(spec.levels))):
        up += [partial(back, i=i, j=j, number=len(down) - len(up) - j) for j in range(level.blocks + 1)]
    return through_skips(x, down, middle, up, deep)


def mixers_at(level: cfg.Level, number: int, blocks: int) -> tuple[cfg.Mixer, ...]:
    """The mixers after a residual block of a level, the number-th of so many on the way down or up."""
    return level.mixers if level.mixers_after == "each" or number + 1 == blocks else ()


def efficient_down_and_up(
    spec: cfg.UNet, run: Run, x: Array, images: int, frame_valid: Array | None, deep: Deep | None = None
) -> Array:
    """The levels of the Efficient U-Net (Saharia et al. 2022, arXiv 2205.11487, figures A.27 to A.30): the reduction
    comes before a level's blocks and the growth after them, so that no block runs at the input's resolution; one long
    skip per level.

    The lowest level goes on without a skip, which would be its own output twice.
    """
    channels, last = [x.shape[-1], *(level.channels for level in spec.levels)], len(spec.levels) - 1

    def down(x: Array, i: int) -> Array:
        level = spec.levels[i]
        x = shard_along(downsampled(spec, run, i, level.channels, x, images, frame_valid), spec.sharded_axis)
        for j in range(level.blocks):
            x = run(x, level, mixers_at(level, j, level.blocks), f"down_{i}_{j}")
        return x

    def up(x: Array, i: int) -> Array:
        level = spec.levels[i]
        for j in range(level.blocks):
            x = run(x, level, mixers_at(level, j, level.blocks), f"up_{i}_{j}")
        return shard_along(upsampled(spec, run, i, level, channels[i], x, images, frame_valid), spec.sharded_axis)

    def back(x: Array, skip: Array, i: int) -> Array:
        return up(jnp.concatenate([x, skip * spec.skip_scale], axis=-1), i)

    if not last:
        return up(down(x, 0), 0)
    return through_skips(down(x, 0), [partial(down, i=i) for i in range(1, last)], lambda x: up(down(x, last), last),
                         [partial(back, i=i) for i in reversed(range(last))], deep)


class Embedding(nn.Module):
    """The conditioning vector `[B, 1 or T, C]` from noise level, pooled text, augmentation level and scalars; and what
    mixers see in addition to the video."""

    config: cfg.UNet

    @nn.compact
    def __call__(
        self, frames: int, logsnr: Array, conditioning: Conditioning, images: int
    ) -> tuple[Array, MixerInputs]:
        spec = self.config
        width = spec.embedding_channels

        def scalar(name: str, value: Array) -> Array:
            return Dense(width, name=name)(sinusoids(value, max(width // 2, 16)))

        level = encode_level(logsnr, spec.level_encoding)
        vector = scalar("level", level if level.ndim == 2 else level[:, None])  # [B, 1 or T, C]
        if spec.low_resolution:
            vector = vector + scalar("augmentation", encode_level(conditioning.augmentation, "inv_cos"))[:, None]
        for name in spec.scalars:
            vector = vector + scalar(name, conditioning.scalars[name])[:, None]
        if spec.classes:
            vector = vector + ClassEmbedding(spec.classes, width, name="label")(conditioning.labels)[:, None]
        for entry in spec.entering("vector"):
            value = Dense(width, name=f"condition_{entry.name}")(conditioning.inputs[entry.name])
            vector = vector + value[:, None]
        extra_keys = {name: (conditioning.references[name], conditioning.reference_masks.get(name))
                 for name in (reference.name for reference in spec.references)}
        extra_keys |= {entry.name: (conditioning.inputs[entry.name], None) for entry in spec.entering("features")}
        if spec.text is not None:
            tokens, mask, pooled = TextConditioner(spec.text, width, jnp.dtype(spec.dtype), name="text")(conditioning)
            if images:  # the clip's caption for its frames, then one per image
                repeats = np.array([frames - images] + [1] * images)
                tokens, mask, pooled = (jnp.repeat(a, repeats, axis=1, total_repeat_length=frames)
                                        for a in (tokens, mask, pooled))
            vector, extra_keys["text"] = vector + pooled, (tokens, mask)
        for entry in spec.entering("tokens"):
            extra_keys["text"] = self._joined(extra_keys.get("text"), entry, conditioning.inputs[entry.name])
        for i in range(spec.embedding_layers - 1):
            vector = Dense(width, name=f"hidden_{i}")(silu(vector))
        return vector, MixerInputs(extra_keys, conditioning.frame_valid)

    def _joined(
        self, text: Tokens | None, entry: Input, value: Float[Array, "B 1 M D"] | Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B _ _ _"], Bool[Array, "B _ _"]]:
        """Tokens of the text, if there are any, and after them those of a condition in their width; the null value is
        an input of zeros, which as spectra of a sound is not silence."""
        width = self.config.embedding_channels if text is None else text[0].shape[-1]
        dtype, name = jnp.dtype(self.config.dtype), f"condition_{entry.name}"
        of_frames = entry.condition.form == "frames"
        value = (SoundTokens(width, dtype, name=name) if of_frames else
                 Dense(width, use_bias=False, dtype=dtype, name=name))(value)
        seen = jnp.ones(value.shape[:3], bool)
        if text is None:
            return value, seen
        return grouped(text[0], value), grouped(text[1], seen)


class ClassEmbedding(nn.Module):
    """A learned vector per class; zeros for the null class, -1."""

    classes: int
    features: int

    @nn.compact
    def __call__(self, labels: Int[Array, " B"]) -> Float[Array, "B C"]:
        table = self.param("classes", nn.initializers.normal(1.0), (self.classes, self.features))
        return jax.nn.one_hot(labels, self.classes) @ table  # a product, since the table may be split over devices


class PositionEmbedding(nn.Module):
    """Adds learned projections of sinusoids of frame, row and column; an appended image counts as frame 0.

    Its initial size exceeds that of the stem's output, which at high noise is noise alone: a code as weak as that is
    drowned, and the network takes ten times longer to learn where and when things are (`experiments/demo/`).
    """

    period: float  # positions; the longest
    axes: tuple[str, ...] = ("frame", "row", "column")
    channels: int = 32  # sinusoids per axis
    gain: float = 4.0  # standard deviation of each axis' code, roughly

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], images: int) -> Array:
        frames, height, width, channels = x.shape[1:]
        frame = np.concatenate([np.arange(frames - images), np.zeros(images, int)])
        indices = {"frame": frame, "row": np.arange(height), "column": np.arange(width)}
        for axis, (name, index) in enumerate(indices.items()):
            if name not in self.axes:
                continue
            code = sinusoids(jnp.asarray(index), self.channels, self.period / (2 * np.pi))
            shape = [1] * 5
            shape[axis + 1], shape[-1] = len(index), channels
            code = self.gain * Dense(channels, use_bias=False, name=name)(code)
            x = x + code.reshape(shape).astype(x.dtype)
        return x
