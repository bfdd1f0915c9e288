"""LVDM's 3-D autoencoder: latents of 4x32x32x4 from clips of 16x256x256, 19.4 M parameters.

Citation: He et al. 2022, arXiv 2211.13221, section 3.1; sizes and losses of its code (configs/videoae/sky.yaml of
          YingqingHe/LVDM).
Hardware: not published. One clip per device, twice accumulated, at a learning rate of 3.6e-5 whatever the devices.
Expected: no published reconstruction score. Not trained by us. Scale and shift of the released weights by data set are
          LVDM_LATENTS of vdm_jax/networks/autoencoders/kl.py; of weights of one's own they are measured after training.
Run:      vdm-jax train autoencoder/lvdm     (needs the extra [metrics]; videos below data/sky)
"""

import dataclasses

from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_LVDM, LVDM_LATENTS
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderStage, AutoencoderTraining
from vdm_jax.stages.stage import VideoSpec
from vdm_jax_configs.autoencoder._losses import LATENT_DIFFUSION


def get_config() -> AutoencoderExperiment:
    """Sky time-lapse videos; no weight on the divergence, so latents are far from normal until they are scaled. Its
    discriminator judges frames. Devices, steps and averaging are not published: here steps of 16 clips."""
    stage = AutoencoderStage(
        name="autoencoder", video=VideoSpec(frames=16, height=256, width=256, fps=8),
        network=dataclasses.replace(AUTOENCODER_LVDM, **LVDM_LATENTS["sky"]),
        training=AutoencoderTraining(
            loss=dataclasses.replace(LATENT_DIFFUSION, kl_weight=0.0), steps=200_000, batch_size=16,
            learning_rate=3.6e-5, ema_decay=0.9999, random_starts=True))
    return AutoencoderExperiment(name="lvdm_autoencoder", stages=(stage,), data=VideoFolder(
        path="data/sky", frames=16, height=256, width=256, clips="one"))
