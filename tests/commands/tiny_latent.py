"""A cascade of two stages so small that training is a matter of seconds: the first works in latents, the second on
pixels. The autoencoder's weights are `autoencoder.safetensors` in the current folder."""

from tests.training.latents import AUTOENCODER
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec


def training(steps, validate=0):
    return Training(steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=1, ema_decay=0.8, log_every=1,
                    checkpoint_every=steps, sample_every=0, validate_every=validate)


def get_config():
    video = VideoSpec(frames=2, height=8, width=8)
    base = Stage(
        name="base", video=video, latent=Latent(autoencoder=AUTOENCODER, weights="autoencoder.safetensors"),
        network=UNet(levels=(Level(channels=16, blocks=1, kernel=1),), patch=2, embedding_channels=16, groups=2,
                     out_channels=4),
        process=Process(prediction="v"), training=training(40, validate=40),
        sampling=Sampling(steps=2, batch_size=8, threshold=None))
    large = Stage(
        name="large", video=VideoSpec(frames=2, height=16, width=16),
        source=LowResolution(frames=2, height=8, width=8),
        network=UNet(levels=(Level(channels=8, blocks=1, kernel=1),), patch=4, embedding_channels=16, groups=2,
                     low_resolution=True),
        process=Process(prediction="x"), training=training(2), sampling=Sampling(steps=2, batch_size=8))
    data = CaptionedDigits(size=16, frames=2, train_clips=16, validation_clips=8, test_clips=8)
    return Experiment(name="tiny_latent", stages=(base, large), data=data)
