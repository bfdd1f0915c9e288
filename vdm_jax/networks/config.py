"""Configs of the space-time U-Net: each level declares its blocks and mixers. Data only; nothing is built here."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from vdm_jax.attention import cross_pattern
from vdm_jax.attention.capability import require
from vdm_jax.attention.patterns import (
    AttentionPattern,
    BlockCausal,
    Causal,
    FirstFrames,
    Full,
    SparseCausal,
    Spatial,
    Temporal,
    WithExtraKeys,
)
from vdm_jax.conditions.inputs import Input, check_conditions
from vdm_jax.conditions.reference import Reference
from vdm_jax.conditions.sparse_control import SparseControl
from vdm_jax.conditions.text import EmbeddedText, TextInput, WordEncoder  # noqa: F401 what configs are made of
from vdm_jax.configuration import (
    Count,
    Depth,
    Length,
    NonNegative,
    OddSize,
    Range,
    ShareBelowOne,
    Size,
    Width,
    WidthOrZero,
    config,
)
from vdm_jax.errors import UserError
from vdm_jax.networks.backbone import Backbone

# ---------------------------------------------------------------------------------------------- mixers


@config
class SelfAttention:
    """Residual self-attention; it starts as the identity.

    Positions: `rotary` turns queries and keys; `relative` (a scalar per clipped offset), `t5` (per bucket of offsets)
    and `shaw` (a key vector per clipped offset) are biases; `shaw_key_value` has vectors for keys and values, which
    kernel `xla` alone takes; `sinusoidal` and `learned` (a table as long as each axis)
    are added to the input. All are over the axes of the pattern's sequences. An `WithExtraKeys` pattern takes the
    the tokens that `extra_tokens` names.
    """

    pattern: AttentionPattern = Spatial()
    head_dim: Size = 32  # channels per head; heads = channels / head_dim
    position: Literal["rotary", "relative", "t5", "shaw", "shaw_key_value", "sinusoidal", "learned",
                      "none"] = "rotary"
    qk_norm: bool = False  # RMS norm of queries and keys per head, with learned scales
    kernel: str = "auto"  # or a name of the capability table
    context: str = "none"
    extra_tokens: str = "text"  # of a WithExtraKeys pattern: the text, or the name of one of UNet.references

    def __post_init__(self):
        require(self.pattern, self.kernel, self.context, extra_keys=isinstance(self.pattern, WithExtraKeys),
                bias=self.position in ("relative", "t5", "shaw", "shaw_key_value"),
                offset_values=self.position == "shaw_key_value")


@config
class CrossAttention:
    """Residual attention of every video token to the text tokens, and to those of conditions that enter as tokens."""

    head_dim: Size = 32  # channels per head
    kernel: str = "auto"  # or a name of the capability table that takes outside tokens

    def __post_init__(self):
        require(cross_pattern(1), self.kernel, "none", extra_keys=True)


@config
class LinearAttention:
    """Residual linear attention, whose work grows with the tokens and not with their square; it starts as the identity
    (`attention/linear.py`; SANA-Video: Chen et al. 2025, arXiv 2509.24695)."""

    pattern: Full | Causal | BlockCausal | SparseCausal | FirstFrames | Spatial = Full()  # which frame sees which
    head_dim: Size = 32  # channels per head
    position: Literal["rotary", "none"] = "rotary"
    qk_norm: bool = True  # RMS norm of queries and keys per head, with learned scales


@config
class TemporalConvolution:
    """Residual temporal convolution (k x 1 x 1); starts as the identity."""

    kernel: OddSize = 3  # frames
    causal: bool = False  # no frame sees later ones


@config
class FrameInjection:
    """Conditioning frames and their mask in a level: `h := w_c h + b_c + h`, then `h := w_m h + b_m + h`, with weights
    and biases from convolutions of the frames, and of the mask, at the level's size, which start at zero (Mask Temporal
    Diffusion: Yin et al. 2023, arXiv 2303.12346, section 3.2). Frames then do not enter as channels of the input."""

    kernel: OddSize = 3  # pixels; not published


@config
class FeedForward:
    """Residual two-layer perceptron per token."""

    expansion: Size = 4  # hidden width / channels


@config
class ConvolutionInflation:
    """Residual (2+1)-D convolution, within frames and then over frames, and a projection that starts at zero: the
    convolution-based inflation block of Lumiere (Bar-Tal et al. 2024, arXiv 2401.12945). Sizes are not published."""

    kernel: OddSize = 3  # pixels
    temporal_kernel: OddSize = 3  # frames


@config
class AttentionInflation:
    """Residual stack of attention temporal layers and a projection that starts at zero: the attention-based
    inflation block of Lumiere, at its lowest level. The number of layers is not published."""

    attention: SelfAttention = SelfAttention(pattern=Temporal())
    layers: Depth = 2

    def __post_init__(self):
        pattern = self.attention.pattern
        if pattern.layout != "positions" or isinstance(pattern, WithExtraKeys):
            raise UserError(f"AttentionInflation.attention.pattern={pattern} is not valid; permitted: patterns of one "
                            "position over frames, Temporal or TemporalCausal")

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.attention.head_dim


Mixer = (SelfAttention | CrossAttention | LinearAttention | TemporalConvolution | FeedForward | ConvolutionInflation
         | AttentionInflation | FrameInjection)

# ---------------------------------------------------------------------------------------------- the U-Net


@config
class Level:
    """One resolution of the U-Net: `blocks` residual blocks, each followed by the mixers in order; with
    `mixers_after="last"` only the last one on the way down and the last one on the way up."""

    channels: Width
    blocks: Depth = 2
    mixers: tuple[Mixer, ...] = ()
    mixers_after: Literal["each", "last"] = "each"  # of the residual blocks
    kernel: Size = 3  # spatial size of the residual blocks' convolutions; 1 leaves space to the mixers
    dropout: ShareBelowOne = 0.0  # probability, inside the residual blocks
    stride: tuple[Size, Size] = (2, 2)  # spatial reduction (height, width) to the next level; see UNet.resample_order
    temporal_stride: Size = 1  # reduction of frames, next to the spatial one

    def __post_init__(self):
        for mixer in self.mixers:
            if self.channels % getattr(mixer, "head_dim", 1):
                raise UserError(f"{type(mixer).__name__}.head_dim={mixer.head_dim} does not divide "
                                f"Level.channels={self.channels}; permitted: a divisor of {self.channels}")


@config
class UNet(Backbone):
    """A space-time U-Net. Published systems are values of this."""

    levels: Annotated[tuple[Level, ...], Length()]
    middle: tuple[Mixer, ...] = ()  # between the two middle residual blocks
    out_channels: Size = 3  # of the video or its latents, which it takes and predicts
    embedding_channels: Width = 128  # width of the conditioning vector
    embedding_layers: Depth = 2  # of the perceptron that makes it
    modulation: Literal["scale_shift", "add"] = "scale_shift"  # how the vector enters a residual block
    level_encoding: Literal["inv_cos", "linear", "edm"] = "inv_cos"  # log-SNR -> scalar before the sinusoids
    # n of sin(2^n pi z) and cos(2^n pi z) of the noisy video as further input channels, which show what is finer than a
    # value of 256 (Kingma et al. 2021, arXiv 2107.00630; 7 and 8 there, for densities). (): none
    fourier: tuple[Annotated[int, Range(least=0, most=12)], ...] = ()
    patch: Size = 1  # space-to-depth factor at the input, undone at the output
    # Frames that become the channels of one, undone at the output; with `patch` these are tubelets (Arnab et al. 2021,
    # arXiv 2103.15691, section 3.2)
    temporal_patch: Size = 1
    stem_kernel: Size = 3  # spatial size of the first convolution, in patches
    out_kernel: Size = 3  # spatial size of the last convolution, in patches
    # Frames of a temporal convolution after every spatial one, which starts as the identity (pseudo-3D convolution:
    # Make-A-Video, Singer et al. 2022, arXiv 2209.14792, section 3.2.1); 1: none
    temporal_kernel: OddSize = 1
    temporal_causal: bool = False  # in these convolutions no frame sees later ones
    position_period: NonNegative = 0.0  # longest period of an added embedding of the place of a patch; 0: no embedding
    # What of the place is embedded; without "frame" an image network can become a video network exactly (inflation.py)
    position_axes: Annotated[tuple[Literal["frame", "row", "column"], ...], Length()] = ("frame", "row", "column")
    # Strided conv / nearest + conv; mean pool / nearest; or those two inside a residual block of their own
    resample: Literal["conv", "pool", "biggan"] = "conv"
    temporal_stride_kernel: OddSize = 3  # frames; of the convolutions next to temporal strides (size not published)
    # "before": a level is reduced by its own stride before its blocks, and grows back after them (Efficient U-Net)
    resample_order: Literal["after", "before"] = "after"
    skip_scale: NonNegative = 1.0  # factor on the long skip; 2**-0.5 in efficient U-Nets
    residual_scale: NonNegative = 1.0  # factor on the shortcut of residual blocks; the other reading of 2**-0.5
    shortcut: Literal["match", "always"] = "match"  # a 1x1 convolution there where channels change, or in every block
    norm_over: Literal["frame", "clip"] = "frame"  # statistics of group norm: per frame or over the clip
    groups: Count = 8  # of group norm, at most
    text: TextInput | None = None
    classes: WidthOrZero = 0  # of a class label, which enters the conditioning vector; 0: takes none
    low_resolution: bool = False  # takes a low-resolution video and its augmentation level
    residual: bool = False  # the output is a change to the low-resolution video (prediction "x" only)
    # takes conditioning frames and their mask: as out_channels + 1 extra input channels, or where a mixer is a
    # FrameInjection by those
    conditioning_frames: bool = False
    scalars: tuple[str, ...] = ()  # names of further scalar inputs, e.g. "fps"
    references: tuple[Reference, ...] = ()  # features that attention layers name as their extra tokens
    # Further conditions: features are extra tokens like references, tokens join those of the text, and maps that enter
    # as residuals have a ControlNet each, a copy of the way down and of the middle
    conditions: tuple[Input, ...] = ()
    sharded_axis: Literal["frames", "height"] = "frames"  # what of a video is split over the mesh axis `context`
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    remat: Literal["none", "dots", "full", "offload"] = "none"  # what the backward pass recomputes; networks/remat.py

    def __post_init__(self):
        if self.resample_order == "before" and self.middle:
            raise UserError("UNet.middle is not empty with resample_order='before', which has no middle; permitted: "
                            "middle=()", "UNet.middle")
        if self.resample == "biggan" and self.resample_order == "before":
            raise UserError("UNet.resample='biggan' with resample_order='before', under which no block runs at the "
                            "resolution of the input; permitted: 'conv', 'pool'")
        if self.resample_order == "after" and self.levels[-1].temporal_stride > 1:
            raise UserError(f"Level.temporal_stride={self.levels[-1].temporal_stride} of the last level, after which "
                            "resample_order='after' reduces nothing; permitted: 1 there", "Level.temporal_stride")
        if self.residual and not self.low_resolution:
            raise UserError("UNet.residual=True with low_resolution=False; permitted: low_resolution=True")
        axes = ("frame", "row", "column")
        if self.position_axes != tuple(axis for axis in axes if axis in self.position_axes):
            raise UserError(f"UNet.position_axes={self.position_axes} is not valid; permitted: some of {axes}, in this "
                            "order")
        mixers = [m for level in self.levels for m in level.mixers] + list(self.middle)
        if self.injected and (not self.conditioning_frames or self.frame_reduction > 1):
            raise UserError(f"UNet.conditioning_frames={self.conditioning_frames} and a reduction of frames by "
                            f"{self.frame_reduction} with FrameInjection; permitted: True, and no reduction of frames")
        between = self.levels[:-1] if self.resample_order == "after" else self.levels[1:]
        if self.injected and any(level.stride == (1, 1) for level in between):
            raise UserError("Level.stride=(1, 1) between levels with FrameInjection, which finds the frames of a level "
                            "by their size; permitted: strides that change it, such as (2, 2)", "Level.stride")
        check_conditions("UNet", self.conditions, ("channels", "vector", "features", "tokens", "residuals"))
        for entry in self.entering("residuals"):
            if isinstance(entry.condition, SparseControl) or self.resample_order == "before":
                raise UserError(f"UNet.conditions: {entry.name!r} enters as residuals with resample_order="
                                f"{self.resample_order!r}; permitted: maps of all frames with 'after', or "
                                "Input.enters='channels'", "UNet.conditions")
        joined = self.entering("tokens")
        if self.text is None and not joined and any(isinstance(m, CrossAttention) for m in mixers):
            raise UserError("UNet.text=None but a level has CrossAttention; permitted: WordEncoder or EmbeddedText, or "
                            "conditions that enter as tokens")
        names = [entry.name for entry in (*self.references, *self.entering("features"))]
        if len(set(names)) < len(names):
            raise UserError(f"UNet.references={names} is not valid; permitted: different names")
        extra_keys = [m.extra_tokens for m in mixers if isinstance(getattr(m, "pattern", None), WithExtraKeys)]
        if joined and "text" not in extra_keys and not any(isinstance(m, CrossAttention) for m in mixers):
            raise UserError(f"UNet.conditions: {joined[0].name!r} enters as tokens, and no mixer attends to tokens; "
                            "permitted: a level with CrossAttention, or with a WithExtraKeys pattern of "
                            "extra_tokens='text'",
                            "UNet.conditions")
        for extra in extra_keys:
            if extra == "text" and self.text is None and not joined:
                raise UserError("UNet.text=None but a mixer has a WithExtraKeys pattern with extra_tokens='text'; "
                                "permitted: text=WordEncoder or EmbeddedText, or one of UNet.references")
            if extra not in ("text", *names):
                raise UserError(f"SelfAttention.extra_tokens={extra!r} is not valid; permitted: "
                                f"{', '.join(['text', *names])}")
        for mixer in self.middle:
            if self.levels[-1].channels % getattr(mixer, "head_dim", 1):
                raise UserError(f"UNet.middle head_dim={mixer.head_dim} does not divide the last level's "
                                f"channels={self.levels[-1].channels}", "UNet.middle")

    @property
    def reduction(self) -> tuple[int, int]:
        """What height and width must be multiples of, pixels."""
        height = width = self.patch
        for level in self._reducing:
            height, width = height * level.stride[0], width * level.stride[1]
        return height, width

    @property
    def skips(self) -> int:
        """Skip connections."""
        if self.resample_order == "before":
            return len(self.levels) - 1
        return sum(level.blocks + 1 for level in self.levels)

    @property
    def frame_reduction(self) -> int:
        """What the number of frames must be a multiple of."""
        return self.temporal_patch * math.prod(level.temporal_stride for level in self._reducing)

    @property
    def crosses_text(self) -> bool:
        """Whether mixers see text by `CrossAttention` alone."""
        mixers = [m for level in self.levels for m in level.mixers] + list(self.middle)
        joined = any(isinstance(m, SelfAttention) and isinstance(m.pattern, WithExtraKeys) and m.extra_tokens == "text"
                     for m in mixers)
        return self.text is not None and not joined and any(isinstance(m, CrossAttention) for m in mixers)

    @property
    def injected(self) -> bool:
        """Whether conditioning frames enter by `FrameInjection`."""
        mixers = [m for level in self.levels for m in level.mixers] + list(self.middle)
        return any(isinstance(mixer, FrameInjection) for mixer in mixers)

    @property
    def stacked(self) -> dict[str, int]:
        """Input channels by what they hold, in the order in which they enter."""
        size = self.out_channels  # of the video, or of its latents
        return {"video": size, **({"low_resolution": size} if self.low_resolution else {}),
                **({"conditioning_frames": size + 1} if self.conditioning_frames and not self.injected else {}),
                **{entry.name: entry.width for entry in self.entering("channels")},
                **({"fourier": 2 * len(self.fourier) * size} if self.fourier else {})}

    def check_stage(self, stage: Any) -> None:
        """Raise `UserError` for a prediction that a change to the low-resolution video is not, images that would be
        mixed with the clip, and crops whose place in the video it would take for another."""
        where, images = f"Stage {stage.name!r}", stage.training.images_per_clip
        if self.residual and stage.process.prediction != "x":
            raise UserError(f"{where}: process.prediction={stage.process.prediction!r} with "
                            "network.residual=True, whose output is a video; permitted: prediction='x'")
        if self.residual and stage.latent is not None and stage.latent.low_resolution == "pixels":
            raise UserError(f"{where}: network.residual=True with latent.low_resolution='pixels', to which no change "
                            "of latents can be added; permitted: 'latents'")
        if images and self.frame_reduction > 1:
            raise UserError(f"{where}: training.images_per_clip={images} with temporal_patch or "
                            "Level.temporal_stride > 1, which mix the images with the clip; permitted: 0, or 1 of both")
        if self.temporal_patch > 1 and stage.process.frame_levels:
            raise UserError(f"{where}: process.frame_levels=True with network.temporal_patch={self.temporal_patch}, "
                            "whose frames have one level; permitted: temporal_patch=1")
        if images and self.norm_over == "clip":
            raise UserError(f"{where}: training.images_per_clip={images} with network.norm_over='clip', whose "
                            "statistics mix the images with the clip; permitted: norm_over='frame'")
        place = self._absolute_position
        if stage.training.crop is not None and place is not None:
            raise UserError(f"{where}: training.crop={stage.training.crop} with {place}, which tells the network where "
                            "in the window it is and not where in the video; permitted: positions relative to each "
                            "other, or none")

    def attended(self, frames: int, height: int, width: int) -> Iterator[int]:
        """Tokens of the sequences over which its layers attend, but for those of one position over frames."""
        frames, height, width = frames // self.temporal_patch, height // self.patch, width // self.patch
        for level in self.levels:
            smaller = frames // level.temporal_stride, height // level.stride[0], width // level.stride[1]
            if self.resample_order == "before":
                frames, height, width = smaller
            for mixer in level.mixers:
                if isinstance(mixer, SelfAttention) and mixer.pattern.layout != "positions":
                    yield height * width * (frames if mixer.pattern.layout == "all" else 1)
            frames, height, width = smaller

    @property
    def _absolute_position(self) -> str | None:
        """The field by which the network knows rows and columns of a frame by their number, if there is one."""
        if self.position_period and self.position_axes != ("frame",):
            return f"network.position_period={self.position_period:g}"
        mixers = [m for level in self.levels for m in level.mixers] + list(self.middle)
        for mixer in mixers:
            if (isinstance(mixer, SelfAttention) and mixer.position in ("sinusoidal", "learned")
                    and mixer.pattern.layout != "positions"):
                return f"SelfAttention.position={mixer.position!r} within frames"
        return None

    @property
    def _reducing(self) -> tuple[Level, ...]:
        return self.levels[:-1] if self.resample_order == "after" else self.levels
