"""Configs of the video transformer: data only; nothing is built here.

A video transformer cuts latents into patches, adds or turns in their positions, and passes them through equal blocks of
self-attention, attention to text and a perceptron, modulated by the noise level (DiT: Peebles & Xie 2022, arXiv
2212.09748; Latte: Ma et al. 2024, arXiv 2401.03048; Wan: Wan Team 2025, arXiv 2503.20314).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from vdm_jax.attention import AttentionPattern, BlockCausal, Full, Spatial, Temporal
from vdm_jax.attention.positions import Rotary, RotaryAxes
from vdm_jax.conditions.image_tokens import IMAGE_TOKENS
from vdm_jax.conditions.inputs import Input, check_conditions
from vdm_jax.conditions.text import EmbeddedText, TextInput
from vdm_jax.configuration import (
    BetweenZeroAndOne,
    Count,
    Depth,
    Length,
    Positive,
    Size,
    SizeOrZero,
    Width,
    WidthOrZero,
    config,
)
from vdm_jax.diffusion.beta_tables import (
    LinearBetaSchedule,
    ListedBetaSchedule,
    ScaledLinearBetaSchedule,
    ShiftedBetaSchedule,
    SquaredCosineBetaSchedule,
)
from vdm_jax.errors import UserError
from vdm_jax.networks.backbone import Backbone
from vdm_jax.networks.transformer import checks

BetaTables = (LinearBetaSchedule | ScaledLinearBetaSchedule | ShiftedBetaSchedule | SquaredCosineBetaSchedule
              | ListedBetaSchedule)


@config
class AddedSinusoids:
    """Sinusoids of positions that are added to the tokens, in the order of frames, columns and rows."""

    shares: tuple[Size, Size, Size] = (2, 3, 3)  # of the channels: for frames, rows and columns
    scales: tuple[Positive, Positive, Positive] = (1.0, 1.875, 1.875)  # that positions are divided by


@config
class VideoTransformer(Backbone):
    """A video transformer. Published ones are values of this."""

    out_channels: Size = 16  # of the latents (or the video), which it takes and predicts
    patch: tuple[Size, Size, Size] = (1, 2, 2)  # frames, rows and columns of a token
    width: Width  # channels of a token
    heads: Size
    hidden: Width  # channels inside the perceptron of a block
    layers: Depth  # blocks
    # Of the self-attention of the blocks, which take them in turn: (Spatial(), Temporal()) is Latte's
    patterns: Annotated[tuple[AttentionPattern, ...], Length()] = (Full(),)
    attention_kernel: str = "auto"  # see `vdm_jax.attention`
    attention_context: str = "none"  # of patterns that look across frames
    # Turns queries and keys; None: sinusoids of the place are added to the tokens
    rotary: Rotary | None = None
    # Of these: shares of frames, rows and columns, and over what their positions are. As many channels for frames, rows
    # and columns, or in the order frames, columns and rows in proportion to the shares (CogVideoX)
    sinusoids: AddedSinusoids | None = None
    # Of queries and keys: RMS norm of a head or of all together ("width"), or layer norm of a head
    qk_norm: Literal["none", "heads", "width", "layer"] = "none"
    qk_epsilon: Positive = 1e-6  # of these norms
    # Before what is modulated: layer norm without weights or with them ("affine": then one more after the last block),
    # or RMS norm without weights, of blocks alone
    norm: Literal["layer", "affine", "rms"] = "layer"
    # How the noise level enters: a projection in every block that starts at zero (adaLN-Zero: DiT, section 3.2), or one
    # projection for all blocks and a learned table in each (adaLN-single: PixArt, Chen et al. 2023, 2310.00426; Wan)
    modulation: Literal["block", "shared"] = "block"
    level_channels: Width = 256  # sinusoids of the noise level
    level_width: WidthOrZero = 0  # channels of what is made of them; 0: those of a token
    # Its number: that of the cosine schedule, 1000 sigma of a flow, or the timestep of a table; see `level_number`
    level_encoding: Literal["inv_cos", "flow", "timesteps"] = "inv_cos"
    timesteps: BetaTables | None = None  # that table
    text: TextInput | None = None  # which the blocks attend to
    # Text tokens are attended to ("cross"), or are tokens of the sequence, which attend to the video too and change,
    # with a modulation of their own, through the layers of the video ("joint": CogVideoX) or their own ("separate")
    text_stream: Literal["cross", "joint", "separate"] = "cross"
    # Blocks after the others in which video and text are alike, and attention stands next to perceptron (HunyuanVideo)
    single_layers: SizeOrZero = 0
    text_refiner: SizeOrZero = 0  # blocks that the text goes through before
    # How texts become tokens: a learned null caption and a pooled vector that joins the noise level's ("pooled"), or
    # as they are, padded with zeros that are seen ("padded": Wan), or without padding ("masked")
    text_tokens: Literal["pooled", "padded", "masked"] = "pooled"
    text_length: SizeOrZero = 0  # of a padded text
    # Two layers bring texts to the width of the blocks; else keys and values do, or one layer where texts are joint
    text_perceptron: bool = False
    cross_norm: bool = True  # a norm with weights before the attention to text
    classes: WidthOrZero = 0  # of a class label, which joins the noise level; 0: takes none
    scalars: tuple[str, ...] = ()  # names of numbers that do, e.g. "fps"
    guidance_perceptron: bool = False  # the weight of the guidance enters as 1000 (1 + w), by two layers
    low_resolution: bool = False  # takes a low-resolution video as further channels, and its augmentation level
    # Takes conditioning frames and their mask as further channels, or in the place of noisy ones, whose tokens then
    # have the noise level zero
    frame_conditioning: Literal["none", "channels", "in_place"] = "none"
    # Of the mask among them; more are of the frames of a latent one, next to latents of the whole clip, which is grey
    # where nothing is given: the network then makes all frames itself (Wan, image to video)
    mask_channels: Count = 1
    # Further conditions, as channels, as part of the vector or as tokens after those of the text. `image_tokens` have a
    # perceptron, keys and values of their own
    conditions: tuple[Input, ...] = ()
    image_places: SizeOrZero = 0  # learned positions of image tokens; 0: none
    # Trained with the clean clip in sight: a noisy block of frames sees the clean ones before it (`BlockCausal`)
    teacher_forcing: bool = False
    # Sigma from which on an expert of its own denoises, of a flow (Wan 2.2: 0.875 and 0.9); None: one network for all
    # noise levels. Parameters of both stand under `high` and `low`
    boundary: BetweenZeroAndOne | None = None
    patch_order: Literal["channels_last", "channels_first"] = "channels_last"  # of the values that a token predicts
    out_scale_first: bool = False  # order of the two parts of the output's modulation
    epsilon: Positive = 1e-6  # of the norms
    sharded_axis: Literal["frames", "height", "width"] = "frames"  # what of a video the mesh axis `context` splits
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    remat: Literal["none", "dots", "full", "offload"] = "none"  # what the backward pass recomputes; networks/remat.py

    def __post_init__(self):
        if self.width % self.heads or self.head_dim % 2:
            raise UserError(f"VideoTransformer.width={self.width} with heads={self.heads}; permitted: an even number "
                            "of channels for each head")
        for name in ("layers", "single_layers"):
            if getattr(self, name) % len(self.patterns):
                raise UserError(f"VideoTransformer.{name}={getattr(self, name)} with {len(self.patterns)} patterns; "
                                f"permitted: multiples of {len(self.patterns)}")
        if isinstance(self.rotary, RotaryAxes) and sum(self.rotary.dims) > self.head_dim:
            raise UserError(f"VideoTransformer.rotary.dims={self.rotary.dims} for heads of {self.head_dim} channels; "
                            f"permitted: up to {self.head_dim} in all", "VideoTransformer.rotary")
        if self.rotary is None and self.width < 6:
            raise UserError(f"VideoTransformer.width={self.width} with rotary=None, whose sinusoids need a pair for "
                            "each axis; permitted: 6 or more")
        if self.modulation == "shared" and self.level_width not in (0, self.width):
            raise UserError(f"VideoTransformer.level_width={self.level_width} with modulation='shared', whose tables "
                            f"are of tokens; permitted: 0, or {self.width}")
        checks.check_patterns(self)
        checks.check_text(self)
        checks.check_positions(self)
        if (self.level_encoding == "timesteps") != (self.timesteps is not None):
            raise UserError(f"VideoTransformer.timesteps={self.timesteps} with level_encoding={self.level_encoding!r}; "
                            "permitted: a table exactly with 'timesteps'")
        check_conditions("VideoTransformer", self.conditions, ("channels", "vector", "tokens"))
        if self.boundary is not None and (self.level_encoding != "flow" or self.block_frames):
            raise UserError(f"VideoTransformer.boundary={self.boundary} with level_encoding={self.level_encoding!r}, "
                            f"patterns={self.patterns}; permitted: 'flow', and no BlockCausal, whose kept keys are of "
                            "one network")
        if self.mask_channels > 1 and self.frame_conditioning != "channels":
            raise UserError(f"VideoTransformer.mask_channels={self.mask_channels} with frame_conditioning="
                            f"{self.frame_conditioning!r}; permitted: 1, or more with 'channels'")

    def context_of(self, pattern: AttentionPattern) -> str:
        """Where the tokens of a block's self-attention live: spatial attention has nothing to exchange."""
        return "none" if pattern.layout == "frames" else self.attention_context

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def block_frames(self) -> int | None:
        """Frames of a block, where no block sees later ones, so that a video can be made block by block; else None."""
        causal = {pattern for pattern in self.patterns if not isinstance(pattern, Spatial)}
        if len(causal) != 1 or not isinstance(pattern := causal.pop(), BlockCausal):
            return None
        return pattern.block * self.patch[0]

    @property
    def reduction(self) -> tuple[int, int]:
        """What height and width must be multiples of."""
        return self.patch[1:]

    @property
    def frame_reduction(self) -> int:
        """What the number of frames must be a multiple of."""
        return self.patch[0]

    skips_are: ClassVar[str] = "blocks"

    @property
    def skips(self) -> int:
        """Blocks: what all but some of the first ones add can be kept from step to step."""
        return self.layers

    @property
    def text_in_sequence(self) -> bool:
        """Whether text tokens are part of the sequence."""
        return self.text_stream != "cross"

    @property
    def crosses_text(self) -> bool:
        """Whether the blocks attend to text that is no part of the sequence."""
        return self.text is not None and not self.text_in_sequence

    @property
    def attends_outside(self) -> bool:
        """Whether the blocks have an attention to tokens that are none of the sequence."""
        return not self.text_in_sequence and (self.text is not None or bool(self.entering("tokens")))

    @property
    def image_tokens(self) -> Input | None:
        """Tokens of pictures, if it takes any."""
        return next((entry for entry in self.conditions if entry.name == IMAGE_TOKENS), None)

    @property
    def conditioning_frames(self) -> bool:
        """Whether it takes conditioning frames."""
        return self.frame_conditioning != "none"

    @property
    def in_place(self) -> bool:
        """Whether conditioning frames take the place of noisy ones."""
        return self.frame_conditioning == "in_place"

    @property
    def stacked(self) -> dict[str, int]:
        """Input channels by what they hold, in the order in which they enter."""
        size, given = self.out_channels, self.frame_conditioning == "channels"
        return {"video": size, **({"low_resolution": size} if self.low_resolution else {}),
                **({"mask": self.mask_channels, "conditioning_frames": size} if given else {}),
                **{entry.name: entry.width for entry in self.entering("channels")}}

    @property
    def expert(self) -> VideoTransformer:
        """Each of the two experts."""
        return dataclasses.replace(self, boundary=None)

    def check_stage(self, stage: Any) -> None:
        """Raise `UserError` for stages that it cannot serve."""
        checks.check_stage(self, stage)

    def attended(self, frames: int, height: int, width: int) -> Iterator[int]:
        """Tokens of the sequences over which its blocks attend, but for those of one position over frames."""
        frames, *sides = (size // patch for size, patch in zip((frames, height, width), self.patch, strict=True))
        for place in range(self.layers + self.single_layers):
            pattern = self.patterns[place % len(self.patterns)]
            if pattern.layout != "positions":
                yield math.prod(sides) * (frames if pattern.layout == "all" else 1)


# DiT-XL/2 of pictures of 1,000 classes in latents of 4 channels, and Latte-XL/2, with spatial and temporal blocks in
# turn. Released ones also predict a variance, which no process here has, and have a class that stands for none.
DIT_XL = VideoTransformer(out_channels=4, width=1152, heads=16, hidden=4608, layers=28, patterns=(Spatial(),),
                          classes=1000)
LATTE_XL = dataclasses.replace(DIT_XL, patterns=(Spatial(), Temporal()), classes=101)


def wan_rotary(head_dim: int) -> RotaryAxes:
    """The share of each axis in Wan: a third for rows and for columns, the rest for frames."""
    side = 2 * (head_dim // 6)
    return RotaryAxes(dims=(head_dim - 2 * side, side, side))


def wan(**sizes: Any) -> VideoTransformer:
    """A transformer of Wan (Wan Team 2025, arXiv 2503.20314): texts of UMT5-XXL, padded to 512 tokens."""
    return VideoTransformer(**{
        "rotary": wan_rotary(sizes["width"] // sizes["heads"]), "qk_norm": "width", "modulation": "shared",
        "level_encoding": "flow", "text": EmbeddedText(width=4096), "text_tokens": "padded", "text_length": 512,
        "text_perceptron": True, **sizes})


def wan_image_tokens(**sizes: Any) -> VideoTransformer:
    """A transformer of Wan 2.1 that goes on from pictures: latents of a clip that is grey but for these, the mask of
    its frames, four to a latent (the first frame counts four times), and tokens of CLIP ViT-H/14."""
    return wan(**{"frame_conditioning": "channels", "mask_channels": 4,
                  "conditions": (Input(name=IMAGE_TOKENS, width=1280),), **sizes})


WAN_1B = wan(width=1536, heads=12, hidden=8960, layers=30)  # Wan 2.1 text to video, 1.3B
WAN_14B = wan(width=5120, heads=40, hidden=13824, layers=40)  # Wan 2.1 text to video, and each expert of 2.2
WAN_14B_IMAGE = wan_image_tokens(width=5120, heads=40, hidden=13824, layers=40)  # Wan 2.1 image to video
# Wan 2.1 of first and last frame: 257 tokens of each
WAN_14B_FIRST_LAST = wan_image_tokens(width=5120, heads=40, hidden=13824, layers=40, image_places=514)
# Wan 2.2 image to video, each expert: the mask of the four frames of a latent one, and the latents of the picture, as
# in `wan_image_tokens`
WAN_14B_I2V = wan(width=5120, heads=40, hidden=13824, layers=40, frame_conditioning="channels", mask_channels=4)
# Wan 2.2, text to video and image to video: one expert for much noise and one for little
WAN_A14B = wan(width=5120, heads=40, hidden=13824, layers=40, boundary=0.875)
WAN_A14B_I2V = dataclasses.replace(WAN_14B_I2V, boundary=0.9)
# Wan 2.2 of text and image to video: the first frame of the latents is given in place
WAN_5B = wan(out_channels=48, width=3072, heads=24, hidden=14336, layers=30, frame_conditioning="in_place")
