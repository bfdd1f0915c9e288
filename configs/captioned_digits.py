"""The demo: a three-stage cascade on captioned moving digits, small enough for a 2-core CPU.

Citation: stage layout of Imagen Video (Ho et al. 2022, arXiv 2210.02303) in miniature: a base and two super-resolution
          stages, trained on degraded real clips with noise-conditioning augmentation. Base and first super-resolution
          see tubelets (Arnab et al. 2021, arXiv 2103.15691, section 3.2) of all their frames.
Hardware: any CPU with two cores and 8 GB.
Expected: see the table in docs/results.md, remade by `make demo`. Trained by us.
Run:      vdm-jax train captioned_digits
"""

from vdm_jax.attention.patterns import Full
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.diffusion.weightings import TruncatedSNRWeighting
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, TemporalConvolution, UNet, WordEncoder
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

# A network with fewer channels than a tubelet has values predicts the clean video: noise has no low-dimensional
# structure to squeeze through.
PROCESS = Process(schedule=CosineSchedule(shift=-1.0), prediction="x")
# Shapes are decided above an SNR of 1.
SHAPES_PROCESS = Process(schedule=PROCESS.schedule, prediction="x", weighting=TruncatedSNRWeighting(gamma=5.0))
FULL, TEXT = SelfAttention(pattern=Full()), CrossAttention()


def words() -> WordEncoder:
    """Attention pools the words of a caption, one of which says which digit to draw."""
    return WordEncoder(length=16, width=64, layers=1, pooling="attention")


def training(**changes) -> Training:
    """Without validation and pictures, which would take their time from the demo."""
    return Training(**{"learning_rate": 1.5e-3, "warmup_steps": 100, "decay": True, "ema_decay": 0.998,
                       "log_every": 50, "checkpoint_every": 500, "sample_every": 0, "validate_every": 0, **changes})


def base() -> Stage:
    """8 frames of 4x4 from a caption: where something of which colour is, and how it moves. All frames are channels of
    one position."""
    network = UNet(levels=(Level(channels=96, blocks=1, mixers=(FULL, TEXT)),), middle=(FULL, TEXT), patch=1,
                   temporal_patch=8, position_period=25.0, embedding_channels=192, text=words())
    return Stage(
        name="base", video=VideoSpec(frames=8, height=4, width=4, fps=4), network=network, process=PROCESS,
        training=training(steps=1500, batch_size=64),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=32, guidance=1.0, batch_size=64))


def spatial_1() -> Stage:
    """8 frames of 16x16 from 8 of 4x4, and which digit it is from the caption. What it starts from shows where the
    digit is, so that the caption's word for it counts at every noise level; without that it goes unnoticed for long.
    Convolutions on 2x2 pixels of all frames, attention on the 4x4 positions below."""
    network = UNet(
        levels=(Level(channels=64, blocks=1, mixers=(TEXT,)), Level(channels=128, blocks=1, mixers=(FULL, TEXT))),
        middle=(FULL, TEXT), patch=2, temporal_patch=8, position_period=25.0, embedding_channels=128,
        low_resolution=True, text=words())
    augmentation = NoiseAugmentation(training_logsnr=(2.0, 9.0), sampling_logsnr=6.0)
    return Stage(
        name="spatial_1", video=VideoSpec(frames=8, height=16, width=16, fps=4), network=network,
        process=SHAPES_PROCESS, source=LowResolution(frames=8, height=4, width=4, augmentation=augmentation),
        training=training(steps=2000, batch_size=32),
        sampling=Sampling(sampler=DDIM(), steps=32, guidance=1.0, batch_size=64))


# What the stage before made needs little forgiveness here, and noise on it would show: sampling adds next to none.
AUGMENTATION = NoiseAugmentation(training_logsnr=(2.0, 9.0), sampling_logsnr=7.5)


def spatial_2() -> Stage:
    """16 frames of 64x64 from 8 of 16x16: a change to the enlarged video, between whose frames others are blended. It
    reads no caption: it only sharpens what is there."""
    level = Level(channels=64, blocks=1, kernel=1, mixers=(TemporalConvolution(),))
    network = UNet(levels=(level,), patch=4, temporal_patch=2, low_resolution=True, residual=True)
    return Stage(
        name="spatial_2", video=VideoSpec(frames=16, height=64, width=64, fps=8), network=network, process=PROCESS,
        source=LowResolution(frames=8, height=16, width=16, fill="linear", augmentation=AUGMENTATION),
        training=training(steps=200, batch_size=8, learning_rate=2e-3, warmup_steps=50, ema_decay=0.99,
                          checkpoint_every=200),
        sampling=Sampling(sampler=DDIM(), steps=8, batch_size=32))


def get_config() -> Experiment:
    """The three stages on 20,000 clips of one digit."""
    data = CaptionedDigits(train_clips=20_000, objects=(1, 1))
    return Experiment(name="captioned_digits", stages=(base(), spatial_1(), spatial_2()), data=data)
