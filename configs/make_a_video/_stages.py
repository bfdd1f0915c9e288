"""Stages of Make-A-Video (Singer et al. 2022, arXiv 2209.14792), of any size.

Published: the stages, their frames and pixels; convolutions and temporal attention after every spatial one, which
begin as the identity; that all stages begin as image networks; the range and direction of the frame rates in training;
the extra input channels of the interpolation network; shared noise in the last stage. Not published, and chosen here:
widths, depths, where attention is, what the networks predict, schedules, samplers, guidance, optimiser settings, how
often what is given in training, and how new input channels begin (at zero).
"""

import dataclasses

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, SelfAttention, TextInput, UNet, WordEncoder
from vdm_jax.stages.options import DynamicThreshold, InitFrom, Sampling, Training
from vdm_jax.stages.stage import KeyFrames, LowResolution, Stage, VideoSpec

PROCESS = Process(schedule=CosineSchedule(), prediction="v")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What decides how large the stages are; the defaults are those of the shipped configs."""

    pixels: tuple[int, int, int] = (64, 256, 768)  # height and width of decoder, first and second super-resolution
    frames: int = 16  # of the decoder
    every: int = 5  # frames from one of these to the next in the final video
    channels: tuple[int, int, int] = (448, 192, 128)  # of the first level of the three networks
    multipliers: tuple[int, ...] = (1, 2, 3, 4)  # of channels, by level
    blocks: int = 2
    attention: int = 3  # lowest levels of the decoder with attention; of the first super-resolution the lowest alone
    head_dim: int = 64
    text: TextInput = EmbeddedText(width=768)  # image and text embeddings of CLIP
    dtype: str = "bfloat16"
    rates: FrameRates = FrameRates()
    training: Training = Training(steps=1_000_000, batch_size=512, learning_rate=1e-4, warmup_steps=10_000,
                                  ema_decay=0.9999)
    sampling: Sampling = Sampling(sampler=DDIM(), steps=64, threshold=DynamicThreshold(per="clip"))

    @property
    def long(self) -> int:
        """Frames of the final video."""
        return (self.frames - 1) * self.every + 1


def tiny() -> Sizes:
    """The same stages with so few channels and pixels that all of them train in a minute on captioned digits: clips of
    10 frames of 32x32."""
    return Sizes(
        pixels=(8, 16, 32), frames=4, every=3, channels=(8, 8, 8), multipliers=(1, 2), blocks=1, attention=1,
        head_dim=8, text=WordEncoder(length=12, width=8, layers=1, head_dim=4), dtype="float32",
        rates=FrameRates(lowest=1.0, highest=8.0, steps=20),
        training=Training(steps=30, batch_size=8, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9, log_every=1,
                          checkpoint_every=30, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(), steps=2, batch_size=8, threshold=DynamicThreshold(per="clip")))


def network(sizes: Sizes, part: int, *, over_frames: bool, **more) -> UNet:
    """The image network of a part of the cascade, or with temporal layers its video network."""
    spatial = SelfAttention(pattern=Spatial(), head_dim=sizes.head_dim)
    temporal = SelfAttention(pattern=Temporal(), head_dim=sizes.head_dim, context="relayout")
    text = sizes.text if part == 0 else None  # super-resolution reads none
    mixers = (spatial, *([temporal] if over_frames else []), *([] if text is None else [
        CrossAttention(head_dim=sizes.head_dim)]))
    lowest = (sizes.attention, 1, 0)[part]  # the last part is convolutional, so that its frames may be large
    depth = len(sizes.multipliers)
    levels = tuple(Level(channels=sizes.channels[part] * multiplier, blocks=sizes.blocks,
                         mixers=mixers if i >= depth - lowest else ())
                   for i, multiplier in enumerate(sizes.multipliers))
    return UNet(levels=levels, middle=mixers if lowest else (), embedding_channels=4 * sizes.channels[part], groups=32,
                text=text, low_resolution=part > 0, temporal_kernel=3 if over_frames else 1, dtype=sizes.dtype,
                remat="full" if sizes.dtype == "bfloat16" else "none", **more)


def image_stages(sizes: Sizes) -> tuple[Stage, ...]:
    """The three image networks, a cascade of their own."""
    stages = []
    for part, name in enumerate(("image", "image_large", "image_final")):
        pixels = sizes.pixels[part]
        source = LowResolution(frames=1, height=sizes.pixels[part - 1], width=sizes.pixels[part - 1]) if part else None
        stages.append(Stage(
            name=name, video=VideoSpec(frames=1, height=pixels, width=pixels, fps=1), source=source,
            network=network(sizes, part, over_frames=False), process=PROCESS, training=sizes.training,
            sampling=guided(sizes, part)))
    return tuple(stages)


def video_stages(sizes: Sizes, images: str) -> tuple[Stage, ...]:
    """Decoder, interpolation and the two super-resolution stages; `images` is the run of the image networks."""
    small, large, final = sizes.pixels
    long, scalars, rates = sizes.long, ("fps",), sizes.rates
    # Half of the interpolation network's clips are filled in; the others go on from a picture, back from one, from one
    # picture to another, or on from a clip.
    others = (FrameMask(first=1), FrameMask(last=1), FrameMask(first=1, last=1), FrameMask(first=sizes.frames))

    def begun(stage: str, run: str | None = images, **more) -> Training:
        return dataclasses.replace(sizes.training, init_from=InitFrom(stage=stage, run=run), **more)

    decoder = Stage(
        name="decoder", video=VideoSpec(frames=sizes.frames, height=small, width=small, fps=4),
        network=network(sizes, 0, over_frames=True, scalars=scalars), process=PROCESS,
        training=begun("image", frame_rates=rates, key_frames=True), sampling=guided(sizes, 0))
    interpolation = Stage(
        name="interpolation", video=VideoSpec(frames=long, height=small, width=small, fps=4 * sizes.every),
        source=KeyFrames(frames=sizes.frames, every=sizes.every),
        network=network(sizes, 0, over_frames=True, scalars=scalars, conditioning_frames=True), process=PROCESS,
        training=begun("decoder", None, frame_rates=rates, key_frames=True, masking=(
            FrameMask(every=sizes.every, weight=float(len(others))), *others)), sampling=guided(sizes, 0))
    super_low = Stage(
        name="super_low", video=VideoSpec(frames=long, height=large, width=large, fps=4 * sizes.every),
        source=LowResolution(frames=long, height=small, width=small),
        network=network(sizes, 1, over_frames=True), process=PROCESS,
        training=begun("image_large", key_frames=True), sampling=guided(sizes, 1))
    super_high = Stage(
        name="super_high", video=VideoSpec(frames=long, height=final, width=final, fps=4 * sizes.every),
        source=LowResolution(frames=long, height=large, width=large),
        network=network(sizes, 2, over_frames=False), process=PROCESS,
        training=begun("image_final", key_frames=True, frames=1),
        sampling=dataclasses.replace(guided(sizes, 2), shared_noise=True))
    return decoder, interpolation, super_low, super_high


def guided(sizes: Sizes, part: int) -> Sampling:
    """Guidance for the part that reads text alone."""
    return dataclasses.replace(sizes.sampling, guidance=4.0 if part == 0 else 0.0)
