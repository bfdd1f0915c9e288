"""Losses that the published autoencoders share: those of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), as
its code has them: absolute errors, LPIPS on VGG16, a patch discriminator of 70 x 70 pixels from step 50,001 on with
half the adaptive weight."""

from vdm_jax.networks.discriminator import Discriminator
from vdm_jax.stages.autoencoding import AutoencoderLoss

LATENT_DIFFUSION = AutoencoderLoss(
    kl_weight=1e-6, perceptual_weight=1.0, perceptual="vgg16", discriminators=(Discriminator(),),
    discriminator_weight=0.5, discriminator_start=50_000)
