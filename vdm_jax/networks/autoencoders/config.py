"""KL autoencoders of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), for images and for video.

One config for the family. Without options videos are encoded and decoded frame by frame. `decoder="temporal"` has
layers over time between the decoder's own: Stable Video Diffusion (Blattmann et al. 2023, arXiv 2311.15127), which
keeps the encoder. `temporal_kernel` and `temporal_attention` put layers over time into both halves that begin as the
identity: T-KLVAE of NUWA-XL (Yin et al. 2023, arXiv 2303.12346), at first equal to the image autoencoder frame by
frame. `layout="clip"` has 3-D convolutions throughout and makes one latent of several frames: LVDM (He et al. 2022,
arXiv 2211.13221; `autoencoders/clip.py`).

A frame of H x W pixels has latents of H/f x W/f, where f is 2 to the number of levels less one. For clips that do not
fit into memory see `autoencoders/tiling.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from jaxtyping import Array, Float

from vdm_jax.configuration import Count, Depth, Length, OddSize, Offset, Positive, Size, Width, config
from vdm_jax.errors import UserError


@config
class Autoencoder:
    """Sizes of a KL autoencoder; the defaults are those of Stable Diffusion 1.x and 2.x (f = 8)."""

    channels: Width = 3  # of the video
    widths: Annotated[tuple[Width, ...], Length()] = (128, 256, 512, 512)  # channels by level, the finest first
    blocks: Depth = 2  # residual blocks per level of the encoder; the decoder has one more
    latent_channels: Width = 4
    groups: Count = 32  # of the norms
    # Diffusion sees `scale * (latents - shift)`, whose standard deviation is about 1.
    scale: Positive = 0.18215
    shift: Offset = 0.0
    quant: bool = True  # 1x1 convolution after the encoder
    post_quant: bool = True  # 1x1 convolution before the decoder
    middle_attention: bool = True  # in the middle of encoder and decoder
    decoder: Literal["frames", "temporal"] = "frames"  # temporal: with temporal layers
    temporal_kernel: OddSize = 1  # frames of a convolution after every 3x3 one of both halves, the identity at first
    temporal_attention: bool = False  # over frames, after the attention in the middle; adds nothing at first
    layout: Literal["frames", "clip"] = "frames"  # clip: 3-D convolutions and norms over the clip
    time_factor: Size = 1  # frames per latent, a power of two up to that of pixels; more than 1 with layout="clip"
    attention_kernel: str = "auto"  # see `vdm_jax.attention`
    dtype: str = "float32"  # of the activations; the released weights overflow float16

    causal = False  # see `causal_config.py`
    pieces = (None, None)

    def __post_init__(self):
        if any(width % self.groups for width in self.widths):
            raise UserError(f"Autoencoder.widths={self.widths} with groups={self.groups}; permitted: multiples of the "
                            "groups")
        self._check_time()

    def _check_time(self) -> None:
        over_time = self.temporal_kernel > 1 or self.temporal_attention
        if self.temporal_attention and not self.middle_attention:
            raise UserError("Autoencoder.temporal_attention=True with middle_attention=False, which it follows; "
                            "permitted: both, or neither")
        if over_time and self.decoder == "temporal":
            raise UserError(f"Autoencoder.decoder='temporal' with temporal_kernel={self.temporal_kernel}, "
                            f"temporal_attention={self.temporal_attention}; permitted: one kind of layers over time")
        if self.layout == "frames" and self.time_factor != 1:
            raise UserError(f"Autoencoder.time_factor={self.time_factor} with layout='frames'; permitted: 1, or "
                            "layout='clip'")
        if self.layout == "clip" and (over_time or self.decoder == "temporal" or self.middle_attention
                                      or len(self.widths) < 2):
            raise UserError("Autoencoder.layout='clip'; permitted with it: two or more widths, decoder='frames', "
                            "temporal_kernel=1, temporal_attention=False, middle_attention=False")
        permitted = [2**i for i in range(len(self.widths))]
        if self.time_factor not in permitted:
            raise UserError(f"Autoencoder.time_factor={self.time_factor}; permitted: {', '.join(map(str, permitted))}")

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return 2 ** (len(self.widths) - 1)

    def latent_frames(self, frames: int) -> int:
        """Latents of a clip. Raises `UserError` for frames that do not fit."""
        factor = self.time_factor
        if frames % factor:
            raise UserError(f"video.frames={frames} for an autoencoder of {factor} frames per latent; permitted: "
                            f"{factor}, {2 * factor}, ...")
        return frames // factor

    @property
    def ours_alone(self) -> bool:
        """Whether it has layers that no class of diffusers has."""
        return self.temporal_kernel > 1 or self.temporal_attention or self.layout == "clip"

    @property
    def last_kernel(self) -> tuple[str, ...]:
        """Where the kernel is that makes the video, in the parameters."""
        if self.decoder == "temporal":
            return "decoder", "out_temporal", "kernel"
        return ("decoder", "out", "temporal", "kernel") if self.temporal_kernel > 1 else ("decoder", "out", "kernel")

    def measured(self, scale: float, shift: float) -> Autoencoder:
        """With latents that were measured: their mean and one over their standard deviation."""
        return dataclasses.replace(self, scale=scale, shift=shift)

    def normalise(self, latents: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Latents as diffusion sees them."""
        return self.scale * (latents - self.shift)

    def denormalise(self, latents: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Latents as the decoder sees them."""
        return latents / self.scale + self.shift


AUTOENCODER_F8 = Autoencoder()
AUTOENCODER_F4 = Autoencoder(widths=(128, 256, 512), scale=0.08333)  # of Stable Diffusion's x4 upscaler
AUTOENCODER_SVD = Autoencoder(decoder="temporal", post_quant=False)  # Stable Video Diffusion

# LVDM: latents of 4 frames x 8 x 8 pixels. Released latents are normalised as scale * (z + shift) by data set, which
# must be measured anew for weights of one's own (`training/reconstruction.py`).
AUTOENCODER_LVDM = Autoencoder(widths=(32, 64, 128, 256), blocks=1, layout="clip", time_factor=4,
                               middle_attention=False)
LVDM_LATENTS = {  # Autoencoder.scale and shift, whose sign is the other one
    "sky": {"scale": 0.33422927, "shift": -1.4606637},
    "ucf": {"scale": 0.220142075, "shift": -0.5837740898},
    "taichi": {"scale": 0.175733933, "shift": -0.03291025},
}
# T-KLVAE of NUWA-XL. Published: where layers over time are and how they begin. Not published: the sizes (here those of
# Stable Diffusion), the kernel's frames (3), heads (1) and norms (per frame) of the attention.
AUTOENCODER_T_KL = Autoencoder(temporal_kernel=3, temporal_attention=True)
