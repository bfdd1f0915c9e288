"""Causal autoencoders of video transformers: sizes, and how their latents are normalised.

Frames see themselves and earlier frames only. The first frame has a latent of its own, every further `time_factor`
frames have one together: 1 + 4n frames are 1 + n latents, and a picture is a clip of one frame. Numbers of the released
models: the code of Wan 2.1 and 2.2 (Wan team 2025, arXiv 2503.20314).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import Depth, Length, Offset, Positive, Size, Width, config
from vdm_jax.errors import UserError


@config
class CausalAutoencoder:
    """Sizes of a causal KL autoencoder; the defaults are those of Wan 2.1."""

    channels: Width = 3  # of the video
    widths: Annotated[tuple[Width, ...], Length()] = (96, 192, 384, 384)  # channels by level, the finest first
    decoder_widths: tuple[Width, ...] | None = None  # of the decoder, the finest first; None: those of the encoder
    blocks: Depth = 2  # residual blocks per level of the encoder; the decoder has one more
    halve_frames: tuple[bool, ...] = (False, True, True)  # which downsamplings also halve the frames
    latent_channels: Width = 16
    patch: Size = 1  # pixels of a side that are folded into channels before the encoder
    # Wan 2.2: shortcuts without parameters around each level, and upsampling that keeps the channels
    shortcuts: bool = False
    # Diffusion sees `(latents - mean) / std`, one number of each per channel.
    mean: tuple[Offset, ...] = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                                0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
    std: tuple[Positive, ...] = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                                 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
    attention_kernel: str = "auto"  # see `vdm_jax.attention`
    dtype: str = "float32"  # of the activations

    causal = True  # see `Latent` for what that means for pieces of a clip
    pieces = (None, None)  # frames encoded and latents decoded at a time where a stage does not say: all

    def __post_init__(self):
        for name, widths in (("widths", self.widths), ("decoder_widths", self.decoder_widths or self.widths)):
            if len(widths) != len(self.widths) or any(width % widths[0] for width in widths):
                raise UserError(f"CausalAutoencoder.{name}={widths}; permitted: {len(self.widths)} multiples of the "
                                "first")
        if len(self.halve_frames) != len(self.widths) - 1:
            raise UserError(f"CausalAutoencoder.halve_frames={self.halve_frames} with {len(self.widths)} widths; "
                            f"permitted: {len(self.widths) - 1} of True and False")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.latent_channels:
                raise UserError(f"CausalAutoencoder.{name}={getattr(self, name)} for latent_channels="
                                f"{self.latent_channels}; permitted: one number for each channel")
        self._check_shortcuts()

    def _check_shortcuts(self) -> None:
        fine = self.decoder_widths or self.widths
        if not self.shortcuts:
            if any(width % 2 for width in fine[1:]):
                raise UserError(f"CausalAutoencoder.widths={fine} without shortcuts, whose upsamplings halve the "
                                "channels; permitted: even ones")
            return
        pixels = [*(8 if halved else 4 for halved in self.halve_frames), 1]  # that a level folds into one
        pairs = {"widths": zip((self.widths[0], *self.widths), self.widths, pixels, strict=False),
                 # Level i of the decoder unfolds the channels of level i + 1, the last one its own.
                 "decoder_widths": zip(fine[1:], (*fine[2:], fine[-1]), pixels, strict=False)}
        for name, levels in pairs.items():
            for one, other, count in levels:
                if one * count % other:
                    raise UserError(f"CausalAutoencoder.{name}={self.widths if name == 'widths' else fine} with "
                                    f"shortcuts from {one} channels of {count} pixels each to {other}; permitted: "
                                    f"divisors of {one * count}")

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def time_factor(self) -> int:
        """Frames per latent, after the first frame."""
        return 2 ** sum(self.halve_frames)

    @property
    def multiples(self) -> tuple[int, int]:
        """What frames encoded and latents decoded at a time are multiples of."""
        return self.time_factor, 1

    def first_piece(self, length: int, frames: int) -> int:
        """Frames of the first piece of so many, at `frames` at a time."""
        return 1 + (length - 1) % frames

    def latent_frames(self, frames: int) -> int:
        """Latents of a clip. Raises `UserError` for frames that do not fit."""
        return causal_latents(frames, self.time_factor)

    @property
    def last_kernel(self) -> tuple[str, ...]:
        """Where the kernel is that makes the video, in the parameters."""
        return "decoder", "out", "kernel"

    def measured(self, scale: float, shift: float) -> CausalAutoencoder:
        """With latents that were measured: their mean and one over their standard deviation, of all channels."""
        count = self.latent_channels
        return dataclasses.replace(self, mean=(shift,) * count, std=(1 / scale,) * count)

    def normalise(self, latents: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        """Latents as diffusion sees them."""
        return (latents - jnp.array(self.mean)) / jnp.array(self.std)

    def denormalise(self, latents: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        """Latents as the decoder sees them."""
        return latents * jnp.array(self.std) + jnp.array(self.mean)


def causal_latents(frames: int, factor: int) -> int:
    """Latents of a clip whose first frame has one of its own. Raises `UserError` for frames that do not fit."""
    if frames < 1 or (frames - 1) % factor:
        below = 1 + max(frames - 1, 0) // factor * factor
        raise UserError(f"video.frames={frames} for a causal autoencoder of {factor} frames per latent after the "
                        f"first; permitted: 1, {1 + factor}, {1 + 2 * factor}, ..., of which {below} and "
                        f"{below + factor} are the nearest")
    return 1 + (frames - 1) // factor


AUTOENCODER_WAN21 = CausalAutoencoder()
AUTOENCODER_WAN22 = CausalAutoencoder(  # of the TI2V-5B model: latents of 4 frames x 16 x 16 pixels
    widths=(160, 320, 640, 640), decoder_widths=(256, 512, 1024, 1024), latent_channels=48, patch=2, shortcuts=True,
    mean=(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.157,
          -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055,
          -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083,
          -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    std=(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
         0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
         0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06,
         0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744))
