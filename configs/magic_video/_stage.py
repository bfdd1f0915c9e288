"""MagicVideo's three networks in any size: key frames, frames between them, and super-resolution of pictures."""

from dataclasses import replace

from vdm_jax.attention.patterns import Temporal
from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule, ScaledLinearBetaSchedule
from vdm_jax.networks.config import EmbeddedText, Level, UNet
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.options import InitFrom, Windows
from vdm_jax.stages.stage import KeyFrames, Stage

BETAS = ScaledLinearBetaSchedule()
PROCESS = Process(schedule=BETAS, prediction="eps", level_sampling=UniformTimestep())
SAMPLER = DDIM(grid=TimestepGrid(spacing="leading", offset=1))
PIXELS = Process(schedule=CosineSchedule(), prediction="v")  # of the super-resolution


def network(unet: LatentUNet) -> LatentNetwork:
    """A U-Net that sees text and the number of frames per second."""
    return LatentNetwork(unet=unet, timesteps=BETAS, text=EmbeddedText(width=unet.token_channels), scalars=("fps",))


def interpolation_network(unet: LatentUNet, frames: int) -> LatentNetwork:
    """The network of clips of so many frames in which key frames are given, as latents in place of the noisy ones and a
    mask as a further channel. `unet` is that of the key frames. Temporal attention sees all frames: one that sees no
    later frame could not see the key frame after it."""
    between = replace(unet, in_channels=unet.in_channels + 1, directed=replace(unet.directed, frames=frames),
                      temporal_pattern=Temporal())
    return replace(network(between), frame_conditioning="in_place")


def super_resolution(channels: int, multipliers: tuple[int, ...], blocks: tuple[int, ...], **options: object) -> UNet:
    """A convolutional image network on pixels, in the layout of Imagen's Efficient U-Net (Saharia et al. 2022, arXiv
    2205.11487, appendix F), so that it learns from windows and samples whole pictures."""
    levels = tuple(Level(channels=channels * m, blocks=n) for m, n in zip(multipliers, blocks, strict=True))
    return UNet(levels=levels, resample_order="before", shortcut="always", skip_scale=2**-0.5,
                embedding_channels=4 * channels, low_resolution=True, **options)


def cascade(
    base: Stage, pictures: Stage, every: int, rates: FrameRates, run: str, steps: int
) -> tuple[Stage, Stage, Stage]:
    """Key frames, the frames between them and super-resolution frame by frame.

    Args:
      base: the stage of the key frames, as whose network and training those of the second stage are.
      pictures: super-resolution of pictures, trained in `run`, as which the third stage begins.
      every: frames from one key frame to the next.
      rates: frames per second of the clips that the second stage learns from.
      steps: for which the third stage goes on with single frames of clips.
    """
    size = base.video
    long = replace(size, frames=(size.frames - 1) * every + 1, fps=size.fps * every)
    base = replace(base, training=replace(base.training, key_frames=True))
    between = replace(
        base, name="interpolation", video=long, source=KeyFrames(frames=size.frames, every=every),
        network=interpolation_network(base.network.unet, long.frames),
        training=replace(base.training, frame_rates=rates, masking=(FrameMask(every=every),)))
    large = replace(long, height=pictures.video.height, width=pictures.video.width)
    final = replace(
        pictures, video=large, source=replace(pictures.source, frames=long.frames),
        training=replace(pictures.training, steps=steps, warmup_steps=0, frames=1, key_frames=True,
                         init_from=InitFrom(stage=pictures.name, run=run)),
        sampling=replace(pictures.sampling, windows=Windows(frames=1, overlap=0), shared_noise=True))
    return base, between, final
