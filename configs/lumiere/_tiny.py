"""Lumiere in miniature on captioned digits: the same code path and kinds of blocks, for tests and for trying it out."""

from vdm_jax.attention.patterns import Spatial
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.stages.options import InitFrom, Sampling, Training, Windows
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.lumiere._network import ADDED, inflated

HEADS = 8
TEXT = WordEncoder(words=caption_words(), length=12, width=16, layers=1)
MIXERS = (SelfAttention(pattern=Spatial(), head_dim=HEADS), CrossAttention(head_dim=HEADS))
PROCESS = Process(prediction="x")
DATA = CaptionedDigits(size=16, frames=8, train_clips=64, validation_clips=16, test_clips=1, objects=(1, 1))


def image_base() -> UNet:
    """Text to image at 8x8."""
    levels = (Level(channels=8, blocks=1), Level(channels=16, blocks=1, mixers=MIXERS))
    return UNet(levels=levels, middle=MIXERS, embedding_channels=16, groups=4, text=TEXT)


def image_super_resolution() -> UNet:
    """8x8 to 16x16."""
    levels = (Level(channels=8, blocks=1), Level(channels=16, blocks=1, mixers=MIXERS[1:]))
    return UNet(levels=levels, resample_order="before", skip_scale=2**-0.5, embedding_channels=16, groups=4, text=TEXT,
                low_resolution=True)


def training(steps: int, **options) -> Training:
    """A few steps of 8 clips."""
    return Training(steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=2, ema_decay=0.5, log_every=1,
                    checkpoint_every=steps, sample_every=0, validate_every=0, **options)


def stages(
    frames: int, networks: tuple[UNet, UNet], steps: int, windows: bool, run: str | None = None, **options
) -> tuple[Stage, Stage]:
    """Base and super-resolution, which begin as those of the run if one is given."""
    init_from = {name: InitFrom(stage=name, run=run) if run else None for name in ("base", "spatial")}
    base = Stage(
        name="base", video=VideoSpec(frames=frames, height=8, width=8, fps=8), network=networks[0], process=PROCESS,
        training=training(steps, init_from=init_from["base"], **options),
        sampling=Sampling(steps=2, guidance=1.0, batch_size=8))
    spatial = Stage(
        name="spatial", video=VideoSpec(frames=frames, height=16, width=16, fps=8), process=PROCESS,
        source=LowResolution(frames=frames, height=8, width=8), network=networks[1],
        training=training(steps, frames=4 if windows else None, init_from=init_from["spatial"], **options),
        sampling=Sampling(steps=2, windows=Windows(frames=4, overlap=2) if windows else None, batch_size=8))
    return base, spatial


def images(steps: int = 40) -> Experiment:
    """The image networks, on first frames."""
    networks = (image_base(), image_super_resolution())
    return Experiment(name="tiny_lumiere_images", stages=stages(1, networks, steps, False), data=DATA)


def videos(steps: int = 20, run: str | None = None) -> Experiment:
    """The video networks, which begin as those of a run of `images`, and of which only what is added is trained."""
    networks = inflated(image_base(), (2, 1), HEADS), inflated(image_super_resolution(), (1, 2), HEADS)
    return Experiment(name="tiny_lumiere", stages=stages(8, networks, steps, True, run, trainable=ADDED), data=DATA)
