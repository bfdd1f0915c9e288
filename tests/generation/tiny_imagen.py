"""Imagen's cascade at a size that is trained in seconds: the same networks, augmentation and windows, words for T5."""

from vdm_jax.attention.patterns import Spatial, WithExtraKeys
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.schedules import CosineSchedule, LinearBetaSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.stages.options import DynamicThreshold, Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

TEXT = WordEncoder(words=caption_words(), length=8, width=8, layers=1, head_dim=4, pooling="attention")
FUSED = SelfAttention(pattern=WithExtraKeys(inner=Spatial()), head_dim=4, position="none")


def stage(name: str, size: int, network: UNet, schedule, source: int | None = None, **training) -> Stage:
    low = None if source is None else LowResolution(frames=1, height=source, width=source)
    return Stage(
        name=name, video=VideoSpec(frames=1, height=size, width=size), network=network, source=low,
        process=Process(schedule=schedule, prediction="eps"),
        training=Training(**{"steps": 30, "batch_size": 16, "learning_rate": 5e-3, "warmup_steps": 2, "log_every": 1,
                             "ema_decay": 0.9, "checkpoint_every": 30, "sample_every": 0, "validate_every": 0}
                          | training),
        sampling=Sampling(sampler=DDPM(), steps=2, guidance=0.35, threshold=DynamicThreshold(), batch_size=8))


def efficient(*mixers) -> UNet:
    levels = (Level(channels=4, blocks=1), Level(channels=8, blocks=2, mixers=mixers, mixers_after="last"))
    return UNet(levels=levels, resample_order="before", shortcut="always", skip_scale=2**-0.5, groups=2,
                embedding_channels=8, text=TEXT, low_resolution=True)


def get_config() -> Experiment:
    """8x8, 16x16 and 32x32 images: frames of captioned digits."""
    base = UNet(levels=(Level(channels=8, blocks=1), Level(channels=8, blocks=1, mixers=(FUSED,))), middle=(FUSED,),
                resample="biggan", groups=2, embedding_channels=16, text=TEXT)
    stages = (
        stage("base", 8, base, CosineSchedule(), optimizer="adafactor", learning_rate=0.1),
        stage("sr_16", 16, efficient(FUSED), CosineSchedule(), 8),
        stage("sr_32", 32, efficient(CrossAttention(head_dim=4)), LinearBetaSchedule(), 16, crop=(16, 16)))
    data = CaptionedDigits(size=32, frames=2, train_clips=64, validation_clips=8, test_clips=8, objects=(1, 1))
    return Experiment(name="tiny_imagen", stages=stages, data=data)
