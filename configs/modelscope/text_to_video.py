"""ModelScope text to video: 16 frames of 256x256 in the latents of Stable Diffusion.

Citation: Wang et al. 2023, arXiv 2308.06571; the released model's config. Training goes on from Stable Diffusion 2.1.
          Ours, as it is not published: dropped captions, decay of the averaged weights. The paper's batch is 3,200
          videos and 1,400 images on other devices; here every clip has one image.
Hardware: not published; an eighth of the GPUs train on images.
Expected: FVD 550 and CLIPSIM .2930 on MSR-VTT (as later papers quote it). Not trained by us.
          Released weights: Training(init_from=InitFromFile(path="unet.safetensors")), a file of vdm-jax convert
          FOLDER/unet.
Run:      vdm-jax train modelscope/text_to_video     (weights/sd_vae.safetensors and weights/sd2_unet.safetensors by
          vdm-jax convert; clips made by vdm-jax prepare; 77 states of OpenCLIP ViT-H/14 for each caption)
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
from vdm_jax.networks.latent_unet import LATENT_UNET_MODELSCOPE
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def get_config() -> Experiment:
    """1,411,233,860 parameters; sampling with the scale 9, which is w = 8."""
    betas = ScaledLinearBetaSchedule()
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=256, width=256, fps=3),
        network=LatentNetwork(unet=LATENT_UNET_MODELSCOPE, timesteps=betas, text=EmbeddedText(width=1024)),
        process=Process(schedule=betas, prediction="eps", level_sampling=UniformTimestep()),
        latent=Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1),
        training=Training(steps=267_000, batch_size=3_200, learning_rate=5e-5, text_dropout=0.1, ema_decay=0.9999,
                          images_per_clip=1, init_from=InitFromFile(path="weights/sd2_unet.safetensors")),
        sampling=Sampling(sampler=DDIM(grid=TimestepGrid(spacing="leading", offset=1)), steps=50, guidance=8.0,
                          threshold=None))
    return Experiment(name="modelscope_text_to_video", stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path="data/open_clip_h", length=77))
