"""The demo: a two-stage cascade on captioned moving digits, small enough for a 2-core CPU.

Citation: stage layout of Imagen Video (Ho et al. 2022, arXiv 2210.02303) in miniature: a base and one super-resolution
          stage of space and time, trained on degraded real clips with noise-conditioning augmentation. The base sees
          tubelets (Arnab et al. 2021, arXiv 2103.15691, section 3.2) of all its frames.
Hardware: any CPU with two cores and 8 GB.
Expected: see the table in docs/results.md, remade by `make demo`. Trained by us.
Run:      vdm-jax train captioned_digits
"""

import dataclasses

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
# With equal weights at all levels motions are learned first and strokes late, with min-SNR weights the other way round:
# where a digit goes is decided below an SNR of 1, and its shape above.
BASE_PROCESS = dataclasses.replace(PROCESS, weighting=TruncatedSNRWeighting(gamma=5.0))


def base() -> Stage:
    """8 frames of 16x16 from a caption. All frames are channels of 2x2 pixels, so that a clip costs what an image
    costs; convolutions on 8x8 positions, attention on the 4x4 below."""
    mixers = (SelfAttention(pattern=Full()), CrossAttention())
    network = UNet(
        levels=(Level(channels=64, blocks=1), Level(channels=128, blocks=1, mixers=mixers)), middle=mixers,
        patch=2, temporal_patch=8, position_period=25.0, text=WordEncoder(length=16, width=64, layers=1))
    return Stage(
        name="base", video=VideoSpec(frames=8, height=16, width=16, fps=4), network=network, process=BASE_PROCESS,
        training=Training(steps=4500, batch_size=16, learning_rate=1.5e-3, warmup_steps=100, decay=True,
                          ema_decay=0.998, log_every=50, checkpoint_every=500, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=48, guidance=1.0, batch_size=64))


# What the base made needs little forgiveness here, and noise on it would show: sampling adds next to none.
AUGMENTATION = NoiseAugmentation(training_logsnr=(2.0, 9.0), sampling_logsnr=7.5)


def spatial() -> Stage:
    """16 frames of 64x64 from 8 of 16x16: a change to the enlarged video, between whose frames others are blended. It
    reads no caption: it only sharpens what is there."""
    level = Level(channels=64, blocks=1, kernel=1, mixers=(TemporalConvolution(),))
    network = UNet(levels=(level,), patch=4, temporal_patch=2, low_resolution=True, residual=True)
    return Stage(
        name="spatial", video=VideoSpec(frames=16, height=64, width=64, fps=8), network=network, process=PROCESS,
        source=LowResolution(frames=8, height=16, width=16, fill="linear", augmentation=AUGMENTATION),
        training=Training(steps=200, batch_size=8, learning_rate=2e-3, warmup_steps=50, decay=True, ema_decay=0.99,
                          log_every=50, checkpoint_every=200, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(), steps=8, batch_size=32))


def get_config() -> Experiment:
    """The two stages on 20,000 clips of one digit."""
    data = CaptionedDigits(train_clips=20_000, objects=(1, 1))
    return Experiment(name="captioned_digits", stages=(base(), spatial()), data=data)
