"""NUWA-XL's T-KLVAE: an image autoencoder with layers over time that begin as the identity, 114 M parameters.

Citation: Yin et al. 2023, arXiv 2303.12346, section 3.1. Published: a convolution over time after each spatial one
          whose centre is the identity, attention over time after each spatial one whose output projection is zero, and
          the objective of the image autoencoder. Sizes are not published: ours are those of Stable Diffusion's
          autoencoder, with kernels of 3 frames.
Hardware: not published.
Expected: reconstruction FID 4.35, FVD 11.88 on FlintstonesHD; 4.71, 28.07 of the image autoencoder (the paper's table
          2). Not trained by us.
Run:      vdm-jax train autoencoder/t_klvae     (needs the extra [metrics]; videos below data/flintstones, and
          weights/sd_vae.safetensors: vdm-jax convert stable-diffusion/vae weights/sd_vae.safetensors)
"""

from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_T_KL
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderStage, AutoencoderTraining
from vdm_jax.stages.stage import VideoSpec
from vdm_jax_configs.autoencoder._losses import LATENT_DIFFUSION


def get_config() -> AutoencoderExperiment:
    """Clips of 16 frames, as the paper's diffusion model has them. Learning rate, batch, steps and averaging are not
    published."""
    stage = AutoencoderStage(
        name="autoencoder", video=VideoSpec(frames=16, height=256, width=256, fps=8), network=AUTOENCODER_T_KL,
        training=AutoencoderTraining(loss=LATENT_DIFFUSION, steps=200_000, batch_size=8, learning_rate=3.6e-5,
                                     ema_decay=0.9999, init_from="weights/sd_vae.safetensors", random_starts=True))
    return AutoencoderExperiment(name="t_klvae", stages=(stage,), data=VideoFolder(
        path="data/flintstones", frames=16, height=256, width=256, clips="one"))
