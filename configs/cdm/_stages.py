"""The four models of Cascaded Diffusion Models (Ho et al. 2021, arXiv 2106.15282, appendix B), over one U-Net."""

import math
from collections.abc import Collection, Sequence

from vdm_jax.attention.patterns import Spatial
from vdm_jax.diffusion.augmentation import Augmentation, BlurAugmentation, NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import LowResolution, Stage, VideoSpec

CLASSES = 1000  # of ImageNet


def network(channels: int, multipliers: Sequence[int], size: int, *, blocks: int, attention_at: Collection[int],
            heads: int, dropout: float, low_resolution: bool) -> UNet:
    """Attention at the given rows and in the middle. Not published in our sources: the vector's width (four times the
    channels) and how residual blocks resample (inside, as in the authors' other networks)."""
    def mixers(width: int) -> tuple[SelfAttention, ...]:
        return (SelfAttention(pattern=Spatial(), head_dim=width // heads, position="none"),)

    levels = tuple(Level(channels=channels * m, blocks=blocks, dropout=dropout,
                         mixers=mixers(channels * m) if size // 2**i in attention_at else ())
                   for i, m in enumerate(multipliers))
    return UNet(levels=levels, middle=mixers(levels[-1].channels), embedding_channels=4 * channels, resample="biggan",
                groups=32, classes=CLASSES, low_resolution=low_resolution, dtype="bfloat16", remat="full")


def stage(name: str, size: int, net: UNet, *, batch: int, steps: int, sampling_steps: int,
          source: LowResolution | None = None, flips: bool = False) -> Stage:
    """A model that makes images of `size` pixels a side. Adam, no guidance; the schedule is our choice."""
    return Stage(
        name=name, video=VideoSpec(frames=1, height=size, width=size, fps=1), network=net, source=source,
        process=Process(schedule=CosineSchedule(), prediction="eps"),
        training=Training(steps=steps, batch_size=batch, learning_rate=1e-4, b2=0.999, ema_decay=0.9999,
                          text_dropout=0.0, flips=flips),
        sampling=Sampling(sampler=DDPM(), steps=sampling_steps))


def smaller(size: int, augmentation: Augmentation) -> LowResolution:
    """The image that a model starts from."""
    return LowResolution(frames=1, height=size, width=size, augmentation=augmentation)


def base_32() -> Stage:
    """From noise to 32x32; the variance is not learned here."""
    net = network(256, (1, 2, 3, 4), 32, blocks=6, attention_at=(8, 16), heads=4, dropout=0.1, low_resolution=False)
    return stage("base_32", 32, net, batch=2048, steps=700_000, sampling_steps=4000)


def sr_64() -> Stage:
    """32x32 to 64x64, non-truncated augmentation; s was searched after training, 1001 of 4000 the best in an ablation
    from 16x16. The variance is not learned here."""
    net = network(256, (1, 2, 3, 4), 64, blocks=5, attention_at=(8, 16), heads=4, dropout=0.1, low_resolution=True)
    s = 1001 / 4000
    noise = NoiseAugmentation(at="low", sampling_logsnr=-2 * math.log(math.tan(math.pi / 2 * s)))
    return stage("sr_64", 64, net, batch=2048, steps=400_000, sampling_steps=4000, source=smaller(32, noise))


def sr_128() -> Stage:
    """64x64 to 128x128, blurred inputs (the range of sigma is published for 256 only)."""
    net = network(128, (1, 2, 4, 8, 8), 128, blocks=3, attention_at=(16,), heads=1, dropout=0.0, low_resolution=True)
    return stage("sr_128", 128, net, batch=1024, steps=500_000, sampling_steps=100,
                 source=smaller(64, BlurAugmentation()))


def sr_256() -> Stage:
    """64x64 to 256x256, blurred inputs, half of the images mirrored."""
    net = network(128, (1, 2, 4, 4, 8, 8), 256, blocks=3, attention_at=(16,), heads=1, dropout=0.0, low_resolution=True)
    return stage("sr_256", 256, net, batch=1024, steps=500_000, sampling_steps=100,
                 source=smaller(64, BlurAugmentation()), flips=True)
