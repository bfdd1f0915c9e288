"""The demo: a three-stage cascade on captioned moving digits, small enough for a 2-core CPU.

Citation: stage layout of Imagen Video (Ho et al. 2022, arXiv 2210.02303) in miniature: base, temporal and spatial
          super-resolution, each trained on degraded real clips with noise-conditioning augmentation.
Hardware: any CPU with two cores and 8 GB.
Expected: see the table in docs/results.md, remade by `make demo`. Trained by us.
Run:      vdm-jax train captioned_digits
"""

from vdm_jax.attention.patterns import Full, Temporal
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import (
    CrossAttention,
    Level,
    SelfAttention,
    TemporalConvolution,
    UNet,
    WordEncoder,
)
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

# Small networks on large patches predict the clean video: noise has no low-dimensional structure to squeeze through.
# Where a digit is and where it goes is decided at high noise, so the schedule is shifted there.
PROCESS = Process(schedule=CosineSchedule(shift=-3.0), prediction="x")


def base() -> Stage:
    """8 frames of 32x32 from a caption: few tokens (4x4 patches of 8x8 pixels), full spatio-temporal attention."""
    full, text = SelfAttention(pattern=Full()), CrossAttention()
    network = UNet(
        levels=(Level(channels=128, blocks=1, mixers=(full, text)),),
        middle=(full, text, full, text), patch=8, position_period=25.0,
        text=WordEncoder(length=16, width=64, layers=1))
    return Stage(
        name="base", video=VideoSpec(frames=8, height=32, width=32, fps=4), network=network, process=PROCESS,
        training=Training(steps=2600, batch_size=8, learning_rate=1.5e-3, warmup_steps=100, decay=True, ema_decay=0.99,
                          log_every=50, checkpoint_every=1000, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=48, guidance=1.0, batch_size=32))


# Super-resolution starts from a video that says nearly everything: an unshifted process, and a change to that video.
DETAIL = Process(schedule=CosineSchedule(shift=-1.0), prediction="x")
# What the stage before made needs little forgiveness here, and noise on it would show: sampling adds next to none.
AUGMENTATION = NoiseAugmentation(training_logsnr=(2.0, 9.0), sampling_logsnr=7.5)


def temporal() -> Stage:
    """16 frames from 8."""
    mixers = (TemporalConvolution(), SelfAttention(pattern=Temporal(), head_dim=16))
    network = UNet(levels=(Level(channels=48, blocks=1, mixers=mixers),), patch=4, low_resolution=True, residual=True)
    return Stage(
        name="temporal", video=VideoSpec(frames=16, height=32, width=32, fps=8), network=network, process=DETAIL,
        source=LowResolution(frames=8, height=32, width=32, augmentation=AUGMENTATION),
        training=Training(steps=450, batch_size=8, learning_rate=2e-3, warmup_steps=50, decay=True, ema_decay=0.99,
                          log_every=50, checkpoint_every=450, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(), steps=8, batch_size=32))


def spatial() -> Stage:
    """64x64 pixels from 32x32."""
    level = Level(channels=48, blocks=1, kernel=1, mixers=(TemporalConvolution(),))
    network = UNet(levels=(level,), patch=4, low_resolution=True, residual=True,
                   text=WordEncoder(length=16, width=64, layers=1))
    return Stage(
        name="spatial", video=VideoSpec(frames=16, height=64, width=64, fps=8), network=network, process=DETAIL,
        source=LowResolution(frames=16, height=32, width=32, augmentation=AUGMENTATION),
        training=Training(steps=180, batch_size=8, learning_rate=2e-3, warmup_steps=50, decay=True, ema_decay=0.99,
                          log_every=50, checkpoint_every=180, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(), steps=8, batch_size=32))


def get_config() -> Experiment:
    """The three stages on 10,000 clips with one digit in most and two in some."""
    data = CaptionedDigits(train_clips=10_000, single_object_fraction=0.85)
    return Experiment(name="captioned_digits", stages=(base(), temporal(), spatial()), data=data)
