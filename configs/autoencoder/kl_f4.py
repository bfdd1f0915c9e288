"""Latent diffusion's KL autoencoder of factor 4: latents of 64x64x3 from images of 256x256, 55.3 M parameters.

Citation: Rombach et al. 2022, arXiv 2112.10752, section 3.1 and appendix G; sizes and losses of its code
          (configs/autoencoder/autoencoder_kl_64x64x3.yaml of CompVis/latent-diffusion). That of Stable Diffusion's x4
          upscaler has 4 latent channels: AUTOENCODER_F4 of vdm_jax/networks/autoencoders/kl.py.
Hardware: not published for the autoencoder. The code's learning rate is 4.5e-6 per image of a step; it makes steps of
          2 images per device twice accumulated.
Expected: reconstruction FID 0.27, PSNR 27.53 on ImageNet validation, trained on OpenImages (the code's README). Not
          trained by us.
Run:      vdm-jax train autoencoder/kl_f4     (needs the extra [metrics]; images below data/openimages)
"""

import dataclasses

from vdm_jax.data.image_folder import ImageFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F4
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderStage, AutoencoderTraining
from vdm_jax.stages.stage import VideoSpec
from vdm_jax_configs.autoencoder._losses import LATENT_DIFFUSION


def get_config() -> AutoencoderExperiment:
    """Images as clips of one frame. Steps and averaging are not published, as of autoencoder/kl_f8. Scale and shift are
    measured after training."""
    images = 4  # of a step on one device
    stage = AutoencoderStage(
        name="autoencoder", video=VideoSpec(frames=1, height=256, width=256, fps=1),
        network=dataclasses.replace(AUTOENCODER_F4, latent_channels=3, scale=1.0),
        training=AutoencoderTraining(loss=LATENT_DIFFUSION, steps=200_000, batch_size=images,
                                     learning_rate=4.5e-6 * images, ema_decay=0.9999, flips=True))
    return AutoencoderExperiment(name="kl_f4", stages=(stage,),
                                 data=ImageFolder(path="data/openimages", height=256, width=256))
