"""An autoencoder so small that training it is a matter of seconds; a config like any other."""

import dataclasses

from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.discriminator import Discriminator
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderLoss, AutoencoderStage, AutoencoderTraining
from vdm_jax.stages.stage import VideoSpec

NETWORK = Autoencoder(widths=(4,), blocks=1, groups=2, latent_channels=2, middle_attention=False)
LOSS = AutoencoderLoss(perceptual_weight=0.0, discriminators=(Discriminator(width=4, layers=1),), discriminator_start=4)
DATA = CaptionedDigits(size=16, frames=4, train_clips=16, validation_clips=8, test_clips=1)


def stage(network: Autoencoder = NETWORK, loss: AutoencoderLoss = LOSS, **training) -> AutoencoderStage:
    """The stage, on clips of 2 frames of 16x16 (of every clip the first and the third)."""
    settings = dict(steps=8, batch_size=8, learning_rate=3e-3, ema_decay=0.5, log_every=1, checkpoint_every=4,
                    sample_every=0, validate_every=4, measured_clips=16)
    return AutoencoderStage(name="autoencoder", video=VideoSpec(frames=2, height=16, width=16), network=network,
                            training=AutoencoderTraining(loss=loss, **{**settings, **training}))


def get_config() -> AutoencoderExperiment:
    """The experiment."""
    return AutoencoderExperiment(name="tiny_autoencoder", stages=(stage(),), data=DATA)


def without_discriminators(loss: AutoencoderLoss = LOSS) -> AutoencoderLoss:
    """The same losses without an adversarial one."""
    return dataclasses.replace(loss, discriminators=())
