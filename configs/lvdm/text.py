"""LVDM, text to video: 16 frames of 256x256 in the latents of Stable Diffusion.

Citation: He et al. 2022, arXiv 2211.13221; the authors' config lvdm_short/text2video (YingqingHe/LVDM). Ours, as it is
          not published: steps, batch, learning rate, dropped captions, guidance, fps.
Hardware: not published.
Expected: FVD 641.8 on UCF-101, zero-shot (as a later paper quotes it). Not trained by us.
          An image network begins it with Training(init_from=InitFromFile(path="unet.safetensors")), a file of
          vdm-jax convert FOLDER/unet unet.safetensors.
Run:      vdm-jax train lvdm/text     (weights/sd_vae.safetensors by vdm-jax convert FOLDER/vae; clips made by vdm-jax
          prepare; 77 last hidden states of CLIP ViT-L/14 for each caption by write_embeddings)
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_LVDM_TEXT
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def get_config() -> Experiment:
    """958,924,964 parameters."""
    betas = ScaledLinearBetaSchedule()
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=256, width=256, fps=8),
        network=LatentNetwork(unet=LATENT_UNET_LVDM_TEXT, timesteps=betas, text=EmbeddedText(width=768)),
        process=Process(schedule=betas, prediction="eps", level_sampling=UniformTimestep()),
        latent=Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1),
        training=Training(steps=200_000, batch_size=256, learning_rate=6e-5, text_dropout=0.1, ema_decay=0.9999),
        sampling=Sampling(sampler=DDIM(grid=TimestepGrid(spacing="leading", offset=1)), steps=50, guidance=6.5,
                          threshold=None))
    return Experiment(name="lvdm_text", stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path="data/clip_l", length=77))
