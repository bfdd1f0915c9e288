"""Shipped configs of autoencoders: published sizes, losses and latents."""

from __future__ import annotations

import pytest

from tests.refusals import refused
from vdm_jax.commands.configs import load_cascade, load_config
from vdm_jax.commands.sizes import parameter_count
from vdm_jax.configuration import from_data, to_data
from vdm_jax.networks.autoencoders.config import LVDM_LATENTS
from vdm_jax.networks.discriminator import Discriminator
from vdm_jax.stages.autoencoding import AutoencoderLoss

# Parameters, and (frames, height, width, channels) of latents and of the video they are of.
PUBLISHED = {
    "autoencoder/kl_f8": (83_653_863, (1, 32, 32, 4), (1, 256, 256)),
    "autoencoder/kl_f4": (55_312_063, (1, 64, 64, 3), (1, 256, 256)),
    "autoencoder/lvdm": (7_458_952 + 11_987_715 + 72 + 20, (4, 32, 32, 4), (16, 256, 256)),
    # That of Stable Diffusion with a convolution over 3 frames after each of its 49 spatial ones, and two attentions.
    "autoencoder/t_klvae": (113_893_325, (16, 32, 32, 4), (16, 256, 256)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_autoencoders(name):
    (stage,) = load_config(name).stages
    count, latents, video = PUBLISHED[name]
    spec = stage.network
    assert parameter_count(stage) == count
    assert (stage.video.frames, stage.video.height, stage.video.width) == video
    assert (video[0] // spec.time_factor, video[1] // spec.factor, video[2] // spec.factor,
            spec.latent_channels) == latents
    loss = stage.training.loss
    assert loss.discriminators == (Discriminator(frames=1, width=64, layers=3),)
    assert (loss.reconstruction, loss.perceptual, loss.perceptual_weight, loss.discriminator_weight) == (
        "l1", "vgg16", 1.0, 0.5)
    assert (loss.discriminator_start, loss.learned_logvar) == (50_000, False)
    assert loss.kl_weight == (0 if name.endswith("lvdm") else 1e-6)
    assert (stage.training.b1, stage.training.b2) == (0.5, 0.9)


def test_losses_of_before_are_read_where_they_mean_the_same():
    loss = AutoencoderLoss(kl_weight=1e-5)
    data = to_data(loss) | {"adaptive": True}
    assert from_data(AutoencoderLoss, data) == loss
    with refused("AutoencoderLoss.adaptive", "=False", "permitted: True"):
        from_data(AutoencoderLoss, data | {"adaptive": False})


def test_lvdm_has_the_published_latents_of_its_data():
    spec = load_config("autoencoder/lvdm").stages[0].network
    assert {"scale": spec.scale, "shift": spec.shift} == LVDM_LATENTS["sky"]


def test_the_demo_in_latents_takes_the_small_autoencoder():
    small = load_config("autoencoder/digits").stages[0].network
    assert load_config("latent_digits").stages[0].latent.autoencoder == small


def test_an_autoencoder_is_no_cascade():
    with refused("configs.load_cascade", "'autoencoder/digits'"):
        load_cascade("autoencoder/digits")
