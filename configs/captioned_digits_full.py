"""The demo's cascade at a size that reads digits well: a base of 8x32x32, then 16x32x32, then 16x64x64.

Citation: stage layout of Imagen Video (Ho et al. 2022, arXiv 2210.02303) in miniature, as configs/captioned_digits.py;
          factorised space-time attention of VDM (Ho et al. 2022, arXiv 2204.03458), section 3.
Hardware: one GPU, or a CPU with patience.
Expected: aims at a whole-caption score of 0.8 and 30 minutes on one GPU; neither has been measured. Not trained by us.
Run:      vdm-jax train captioned_digits_full
"""

from vdm_jax.attention.patterns import Full, Spatial, Temporal
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, TemporalConvolution, UNet, WordEncoder
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

# What a digit is and where it goes is decided at high noise, so the schedule is shifted there.
PROCESS = Process(schedule=CosineSchedule(shift=-2.0), prediction="v")
AUGMENTATION = NoiseAugmentation(training_logsnr=(0.0, 8.0), sampling_logsnr=4.0)


def training(steps: int, batch_size: int) -> Training:
    """What the stages share."""
    return Training(steps=steps, batch_size=batch_size, learning_rate=5e-4, warmup_steps=500, decay=True,
                    ema_decay=0.999, checkpoint_every=2000, sample_every=5000, validate_every=2000)


def base() -> Stage:
    """8 frames of 32x32 from a caption."""
    factorised = (SelfAttention(pattern=Spatial()), SelfAttention(pattern=Temporal()))
    full = (SelfAttention(pattern=Full()), CrossAttention())
    network = UNet(
        levels=(Level(channels=96, blocks=1, mixers=factorised), Level(channels=192, blocks=3, mixers=full)),
        middle=full, patch=2, position_period=25.0, embedding_channels=384,
        text=WordEncoder(length=16, width=96, layers=2))
    return Stage(
        name="base", video=VideoSpec(frames=8, height=32, width=32, fps=4), network=network, process=PROCESS,
        training=training(30_000, 64), sampling=Sampling(sampler=DDIM(), steps=50, guidance=2.0, batch_size=64))


def temporal() -> Stage:
    """16 frames from 8."""
    mixers = (TemporalConvolution(), SelfAttention(pattern=Temporal()))
    network = UNet(levels=(Level(channels=64, blocks=2, mixers=mixers), Level(channels=128, blocks=2, mixers=mixers)),
                   patch=2, low_resolution=True)
    return Stage(
        name="temporal", video=VideoSpec(frames=16, height=32, width=32, fps=8), network=network, process=PROCESS,
        source=LowResolution(frames=8, height=32, width=32, augmentation=AUGMENTATION),
        training=training(10_000, 32), sampling=Sampling(sampler=DDIM(), steps=16, batch_size=64))


def spatial() -> Stage:
    """64x64 pixels from 32x32."""
    mixers = (TemporalConvolution(),)
    network = UNet(levels=(Level(channels=64, blocks=2, mixers=mixers), Level(channels=128, blocks=2, mixers=mixers)),
                   patch=4, low_resolution=True)
    return Stage(
        name="spatial", video=VideoSpec(frames=16, height=64, width=64, fps=8), network=network, process=PROCESS,
        source=LowResolution(frames=16, height=32, width=32, augmentation=AUGMENTATION),
        training=training(10_000, 32), sampling=Sampling(sampler=DDIM(), steps=16, batch_size=64))


def get_config() -> Experiment:
    """The three stages on 100,000 clips of one and two digits."""
    return Experiment(name="captioned_digits_full", stages=(base(), temporal(), spatial()),
                      data=CaptionedDigits(train_clips=100_000))
