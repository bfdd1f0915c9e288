"""The autoencoders of LTX-Video (HaCohen et al. 2024, arXiv 2501.00103): sizes of the released versions.

One latent of 8 frames x 32 x 32 pixels after the first frame, of 128 channels. The encoder is causal, the decoder sees
later frames too. From version 0.9.1 on the decoder is a last step of denoising: it is conditioned on a time, and
latents get a little noise before it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import Depth, Length, NonNegative, Positive, Share, ShareBelowOne, Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.causal_config import causal_latents

# How a level of the encoder ends: a strided convolution of frames, rows and columns, or a convolution and blocks of
# pixels, of frames or of both folded into channels. none: it does not shrink.
Shrink = Literal["conv", "space", "time", "both", "none"]


@config
class LTXAutoencoder:
    """Sizes of an autoencoder of LTX-Video; the defaults are those of version 0.9.0."""

    channels: Width = 3  # of the video
    patch: Size = 4  # pixels of a side that are folded into channels before the encoder
    latent_channels: Width = 128
    widths: Annotated[tuple[Width, ...], Length()] = (128, 256, 512, 512)  # of the levels of the encoder
    out_width: Width = 512  # after its last level
    blocks: Annotated[tuple[Depth, ...], Length()] = (4, 3, 3, 3, 4)  # residual blocks of its levels, and after them
    shrink: tuple[Shrink, ...] = ("conv", "conv", "conv", "none")  # of its levels
    decoder_widths: Annotated[tuple[Width, ...], Length()] = (128, 256, 512, 512)  # the finest first
    decoder_blocks: Annotated[tuple[Depth, ...], Length()] = (4, 3, 3, 3, 4)  # the last before the levels
    grow: tuple[bool, ...] = (True, True, True, False)  # which levels of the decoder double frames, rows and columns
    noise: tuple[bool, ...] = (False,) * 5  # which blocks of the decoder add noise, as `decoder_blocks`
    narrowing: Size = 1  # by which a level of the decoder divides the channels
    shortcuts: bool = False  # around the upsamplings
    timed: bool = False  # decoder conditioned on a time
    # Of the last step of denoising: its time, and the share of noise in the latents. Those of the authors' code
    decode_time: Share = 0.05
    decode_noise: ShareBelowOne = 0.025
    scale: Positive = 1.0  # diffusion sees `scale * latents`, whose means and deviations are among the weights
    epsilon: NonNegative = 1e-6  # of the norms of shortcuts
    dtype: str = "float32"  # of the activations

    causal = True
    pieces = (None, None)

    def __post_init__(self):
        levels = {"blocks": len(self.widths) + 1, "shrink": len(self.widths), "grow": len(self.decoder_widths),
                  "decoder_blocks": len(self.decoder_widths) + 1, "noise": len(self.decoder_widths) + 1}
        for name, count in levels.items():
            if len(getattr(self, name)) != count:
                raise UserError(f"LTXAutoencoder.{name}={getattr(self, name)}; permitted: {count} of them")
        if len({"conv" in self.shrink, any(way in self.shrink for way in ("space", "time", "both"))}) == 1:
            raise UserError(f"LTXAutoencoder.shrink={self.shrink}; permitted: 'conv' and 'none', or the others")
        if self.side_factor != 2 ** sum(self.grow) or self.time_factor != 2 ** sum(self.grow):
            raise UserError(f"LTXAutoencoder.grow={self.grow} doubles {sum(self.grow)} times, and shrink={self.shrink} "
                            "shrinks by other factors; permitted: the same")
        self._check_widths()

    def _check_widths(self) -> None:
        pairs = zip(self.decoder_widths, self.decoder_widths[1:], strict=False)
        if self.narrowing > 1 and (8 % self.narrowing or self.decoder_widths[0] % self.narrowing or not all(self.grow)
                                   or any(one * self.narrowing != other for one, other in pairs)):
            raise UserError(f"LTXAutoencoder.narrowing={self.narrowing} with decoder_widths={self.decoder_widths} and "
                            f"grow={self.grow}; permitted: 1, or a divisor of 8 by which each level has fewer "
                            "channels, all of which grow")
        if self.shortcuts and any(width % 8 for width in self.decoder_widths):
            raise UserError(f"LTXAutoencoder.decoder_widths={self.decoder_widths} with shortcuts, which unfold 8 "
                            "channels; permitted: multiples of 8")
        for way, one, other in zip(self.shrink, self.widths, (*self.widths[1:], self.out_width), strict=True):
            count = {"space": 4, "time": 2, "both": 8}.get(way, 1)
            if self.folds and (other % count or one * count % other):
                raise UserError(f"LTXAutoencoder.widths={self.widths}, {self.out_width}: {one} channels of blocks of "
                                f"{count} become {other}; permitted: divisors of {one * count}, multiples of {count}")

    @property
    def folds(self) -> bool:
        """Whether levels of the encoder fold blocks into channels, as from version 0.9.5 on."""
        return "conv" not in self.shrink

    @property
    def side_factor(self) -> int:
        """Patches of a side per latent."""
        return 2 ** sum(way in ("conv", "space", "both") for way in self.shrink)

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return self.patch * self.side_factor

    @property
    def time_factor(self) -> int:
        """Frames per latent, after the first frame."""
        return 2 ** sum(way in ("conv", "time", "both") for way in self.shrink)

    @property
    def multiples(self) -> tuple[int, None]:
        """What frames encoded at a time are multiples of. Latents are decoded all at once, as the decoder sees later
        ones."""
        return self.time_factor, None

    def first_piece(self, length: int, frames: int) -> int:
        """Frames of the first piece of so many, at `frames` at a time."""
        return 1 + (length - 1) % frames

    def latent_frames(self, frames: int) -> int:
        """Latents of a clip. Raises `UserError` for frames that do not fit."""
        return causal_latents(frames, self.time_factor)

    def normalise(self, latents: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Latents as diffusion sees them, of those that the network normalises by its own means and deviations."""
        return jnp.asarray(self.scale) * latents

    def denormalise(self, latents: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Latents as the decoder sees them."""
        return latents / self.scale


AUTOENCODER_LTX_090 = LTXAutoencoder()
AUTOENCODER_LTX_091 = LTXAutoencoder(
    decoder_widths=(256, 512, 1024), decoder_blocks=(5, 6, 7, 8), grow=(True,) * 3, noise=(True, True, True, False),
    narrowing=2, shortcuts=True, timed=True)
AUTOENCODER_LTX_095 = LTXAutoencoder(  # and later versions
    widths=(128, 256, 512, 1024), out_width=2048, blocks=(4, 6, 6, 2, 2), shrink=("space", "time", "both", "both"),
    decoder_widths=(256, 512, 1024), decoder_blocks=(5,) * 4, grow=(True,) * 3, noise=(False,) * 4, narrowing=2,
    shortcuts=True, timed=True)
