"""The demo in latents: captioned moving digits, made in the latents of a small autoencoder and completed on pixels.

Citation: latent diffusion (Rombach et al. 2022, arXiv 2112.10752) in miniature, followed by a super-resolution stage of
          the pixel cascades (Ho et al. 2022, arXiv 2210.02303).
Hardware: any CPU with two cores and 8 GB.
Expected: no published result; captioned_digits is the same in pixels. Not trained by us.
Run:      vdm-jax train autoencoder/digits --run runs/autoencoder_digits
          vdm-jax train latent_digits
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
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.autoencoder.digits import NETWORK


def base() -> Stage:
    """8 frames of 64x64 from a caption: latents of 16x16x4 by `autoencoder/digits`, whose run says their scale and
    shift, in 4x4 patches per frame with full spatio-temporal attention. Where a digit is and where it goes is decided
    at high noise, so the schedule is shifted there, as in `captioned_digits`."""
    full, text = SelfAttention(pattern=Full()), CrossAttention()
    network = UNet(
        levels=(Level(channels=128, blocks=1, mixers=(full, text)),), middle=(full, text, full, text), patch=4,
        out_channels=4, position_period=25.0, text=WordEncoder(length=16, width=64, layers=1))
    return Stage(
        name="base", video=VideoSpec(frames=8, height=64, width=64, fps=4),
        latent=Latent(autoencoder=NETWORK, weights="runs/autoencoder_digits"), network=network,
        process=Process(schedule=CosineSchedule(shift=-2.0), prediction="x"),
        training=Training(steps=2600, batch_size=8, learning_rate=1.5e-3, warmup_steps=100, decay=True, ema_decay=0.99,
                          log_every=50, checkpoint_every=1000, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=48, guidance=1.0, threshold=None, batch_size=32))


def temporal() -> Stage:
    """16 frames from 8, on pixels: a change to the video that the latent stage has made."""
    mixers = (TemporalConvolution(), SelfAttention(pattern=Temporal(), head_dim=16))
    network = UNet(levels=(Level(channels=48, blocks=1, mixers=mixers),), patch=8, low_resolution=True, residual=True)
    augmentation = NoiseAugmentation(training_logsnr=(2.0, 9.0), sampling_logsnr=7.5)
    return Stage(
        name="temporal", video=VideoSpec(frames=16, height=64, width=64, fps=8), network=network,
        process=Process(schedule=CosineSchedule(shift=-1.0), prediction="x"),
        source=LowResolution(frames=8, height=64, width=64, augmentation=augmentation),
        training=Training(steps=450, batch_size=8, learning_rate=2e-3, warmup_steps=50, decay=True, ema_decay=0.99,
                          log_every=50, checkpoint_every=450, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(), steps=8, batch_size=32))


def get_config() -> Experiment:
    """The two stages on the data of `captioned_digits`."""
    data = CaptionedDigits(train_clips=10_000, single_object_fraction=0.85)
    return Experiment(name="latent_digits", stages=(base(), temporal()), data=data)
