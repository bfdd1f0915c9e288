"""KL autoencoders of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), for images and for video.

One config for the family. Without options videos are encoded and decoded frame by frame. `decoder="temporal"` has
layers over time between the decoder's own: Stable Video Diffusion (Blattmann et al. 2023, arXiv 2311.15127), which
keeps the encoder. `temporal_kernel` and `temporal_attention` put layers over time into both halves that begin as the
identity: T-KLVAE of NUWA-XL (Yin et al. 2023, arXiv 2303.12346), at first equal to the image autoencoder frame by
frame. `layout="clip"` has 3-D convolutions throughout and makes one latent of several frames: LVDM (He et al. 2022,
arXiv 2211.13221; `autoencoder_clip.py`).

A frame of H x W pixels has latents of H/f x W/f, where f is 2 to the number of levels less one. For clips that do not
fit into memory see `tiling.py`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import Count, Depth, Offset, Positive, Size, Width, config
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoder_blocks import Block, Double, FrameAttention, Halve
from vdm_jax.networks.autoencoder_clip import ClipDecoder, ClipEncoder
from vdm_jax.networks.layers import Convolution, GroupNorm, silu


@config
class Autoencoder:
    """Sizes of a KL autoencoder; the defaults are those of Stable Diffusion 1.x and 2.x (f = 8)."""

    channels: Width = 3  # of the video
    widths: tuple[Width, ...] = (128, 256, 512, 512)  # channels by level, the finest first
    blocks: Depth = 2  # residual blocks per level of the encoder; the decoder has one more
    latent_channels: Width = 4
    groups: Count = 32  # of the norms
    # Diffusion sees `scale * (latents - shift)`, whose standard deviation is about 1.
    scale: Positive = 0.18215
    shift: Offset = 0.0
    quant: bool = True  # 1x1 convolution after the encoder
    post_quant: bool = True  # 1x1 convolution before the decoder
    middle_attention: bool = True  # in the middle of encoder and decoder
    decoder: Literal["frames", "temporal"] = "frames"  # temporal: with layers over frames
    temporal_kernel: Size = 1  # frames of a convolution after every 3x3 one of both halves, the identity at first
    temporal_attention: bool = False  # over frames, after the attention in the middle; adds nothing at first
    layout: Literal["frames", "clip"] = "frames"  # clip: 3-D convolutions and norms over the clip
    time_factor: Size = 1  # frames per latent, a power of two up to that of pixels; more than 1 with layout="clip"
    attention_kernel: str = "auto"  # see `vdm_jax.attention`
    dtype: str = "float32"  # of the activations; the released weights overflow float16

    def __post_init__(self):
        if not self.widths or min(self.widths) < 1 or any(width % self.groups for width in self.widths):
            raise UserError(f"Autoencoder.widths={self.widths} with groups={self.groups}; permitted: one or more "
                            "levels, in multiples of the groups")
        if min(self.blocks, self.latent_channels, self.channels) < 1 or self.scale <= 0:
            raise UserError(f"Autoencoder: blocks={self.blocks}, latent_channels={self.latent_channels}, "
                            f"channels={self.channels}, scale={self.scale}; permitted: positive")
        if self.decoder not in ("frames", "temporal"):
            raise UserError(f"Autoencoder.decoder={self.decoder!r}; permitted: 'frames', 'temporal'")
        if self.layout not in ("frames", "clip"):
            raise UserError(f"Autoencoder.layout={self.layout!r}; permitted: 'frames', 'clip'")
        if self.temporal_kernel < 1 or not self.temporal_kernel % 2:
            raise UserError(f"Autoencoder.temporal_kernel={self.temporal_kernel}; permitted: 1, 3, 5, ...")
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

    def normalise(self, latents: Float[Array, ...]) -> Float[Array, ...]:
        """Latents as diffusion sees them."""
        return self.scale * (latents - self.shift)

    def denormalise(self, latents: Float[Array, ...]) -> Float[Array, ...]:
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


class Moments(NamedTuple):
    """The normal distribution of latents that a video is encoded as."""

    mean: Float[Array, "b t h w c"]  # also the mode
    logvar: Float[Array, "b t h w c"]  # within [-30, 20]

    def sample(self, noise: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """A draw, given standard normal noise."""
        return self.mean + jnp.exp(self.logvar / 2) * noise

    def divergence(self) -> Float[Array, "b t h w c"]:
        """KL divergence from the standard normal distribution, nats, number by number."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.logvar) - 1 - self.logvar)


class AutoencoderKL(nn.Module):
    """Video `[B, T, H, W, C]` in [-1, 1] to moments of latents, and latents to video.

    Latents here are as the weights have them; diffusion sees `config.normalise(latents)`. `encode` raises `UserError`
    for frames that the factor does not divide, and clips that the factor of time does not.
    """

    config: Autoencoder

    def setup(self):
        spec = self.config
        pointwise = {"kernel": (1, 1, 1), "dtype": jnp.dtype(spec.dtype)}
        encoder, decoder = (ClipEncoder, ClipDecoder) if spec.layout == "clip" else (Encoder, Decoder)
        self.encoder, self.decoder = encoder(spec), decoder(spec)
        if spec.quant:
            self.quant = Convolution(2 * spec.latent_channels, **pointwise)
        if spec.post_quant:
            self.post_quant = Convolution(spec.latent_channels, **pointwise)

    def encode(self, video: Float[Array, "b t h w c"]) -> Moments:
        """Mean and log-variance of the latents, float32: of each frame, or of every `time_factor` frames."""
        factor, frames = self.config.factor, self.config.time_factor
        if video.shape[1] % frames:
            raise UserError(f"video of {video.shape[1]} frames for an autoencoder of {frames} frames per latent; "
                            f"permitted: multiples of {frames}")
        if video.shape[2] % factor or video.shape[3] % factor:
            raise UserError(f"video of {video.shape[2]}x{video.shape[3]} for an autoencoder of factor {factor}; "
                            f"permitted: multiples of {factor}")
        moments = self.encoder(video)
        moments = self.quant(moments) if self.config.quant else moments
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 o"]:
        """Video of latents, float32, not clipped to [-1, 1]."""
        latents = self.post_quant(latents) if self.config.post_quant else latents
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """The video of the mean latents."""
        return self.decode(self.encode(video).mean)


def _options(spec: Autoencoder) -> dict[str, Any]:
    """Of residual blocks."""
    return {"groups": spec.groups, "dtype": jnp.dtype(spec.dtype), "temporal": spec.temporal_kernel}


class Middle(nn.Module):
    """Two blocks at the coarsest level, with attention between them."""

    config: Autoencoder
    temporal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        spec = self.config
        x = Block(x.shape[-1], self.temporal, _options(spec), name="in")(x)
        attention = (spec.groups, spec.attention_kernel, jnp.dtype(spec.dtype))
        if spec.middle_attention:
            x = FrameAttention(*attention, name="frame_attention")(x)
        if spec.temporal_attention:
            x = FrameAttention(*attention, over_time=True, name="temporal_attention")(x)
        return Block(x.shape[-1], self.temporal, _options(spec), name="out")(x)


class Encoder(nn.Module):
    """Video to the moments of its latents, side by side."""

    config: Autoencoder

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c2"]:
        spec, dtype, temporal = self.config, jnp.dtype(self.config.dtype), self.config.temporal_kernel
        x = Convolution(spec.widths[0], dtype=dtype, temporal=temporal, name="stem")(video)
        for i, width in enumerate(spec.widths):
            for j in range(spec.blocks):
                x = Block(width, False, _options(spec), name=f"down_{i}_{j}")(x)
            if i < len(spec.widths) - 1:
                x = Halve(dtype, temporal, name=f"downsample_{i}")(x)
        x = Middle(spec, name="middle")(x)
        x = silu(GroupNorm(spec.groups, epsilon=1e-6, name="norm")(x))
        return Convolution(2 * spec.latent_channels, dtype=dtype, temporal=temporal, name="out")(x)


class Decoder(nn.Module):
    """Latents to video; levels are numbered from the coarsest."""

    config: Autoencoder

    @nn.compact
    def __call__(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 o"]:
        spec, dtype, kernel = self.config, jnp.dtype(self.config.dtype), self.config.temporal_kernel
        temporal = spec.decoder == "temporal"
        x = Convolution(spec.widths[-1], dtype=dtype, temporal=kernel, name="stem")(latents)
        x = Middle(spec, temporal, name="middle")(x)
        for i, width in enumerate(reversed(spec.widths)):
            for j in range(spec.blocks + 1):
                x = Block(width, temporal, _options(spec), name=f"up_{i}_{j}")(x)
            if i < len(spec.widths) - 1:
                x = Double(dtype, kernel, name=f"upsample_{i}")(x)
        x = silu(GroupNorm(spec.groups, epsilon=1e-6, name="norm")(x))
        x = Convolution(spec.channels, dtype=dtype, temporal=kernel, name="out")(x)
        if temporal:
            x = Convolution(spec.channels, (3, 1, 1), dtype=dtype, name="out_temporal")(x)
        return x
