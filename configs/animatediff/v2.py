"""AnimateDiff, second version: motion modules trained between the layers of Stable Diffusion 1.5, 16 frames of 256x256.

Citation: Guo et al. 2023, arXiv 2307.04725; the authors' configs (guoyww/AnimateDiff). The betas are linear, unlike
          those of the image model. Ours, as it is not published: batch, steps, dropped captions, decay of the averaged
          weights. Not here: the adapter that learns what stills of the clips look like before the modules are trained.
          The first and third versions are LATENT_UNET_ANIMATEDIFF_V1 and _V3.
Hardware: not published.
Expected: user study (mean rank, higher is better): text 2.210, domain 2.280, smoothness 2.825. Not trained by us.
Run:      vdm-jax train animatediff/v2     (weights/sd_vae.safetensors and weights/sd1_unet.safetensors by vdm-jax
          convert; clips of every 4th frame made by vdm-jax prepare; 77 states of CLIP ViT-L/14 for each caption)
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import LinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_ANIMATEDIFF_V2
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def get_config() -> Experiment:
    """1,312,730,244 parameters, of which 453,209,280 in motion modules; sampling with the scale 8, which is w = 7."""
    betas = LinearBetaSchedule(beta_start=0.00085, beta_end=0.012)
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=256, width=256, fps=8),
        network=LatentNetwork(unet=LATENT_UNET_ANIMATEDIFF_V2, timesteps=betas, text=EmbeddedText(width=768)),
        process=Process(schedule=betas, prediction="eps", level_sampling=UniformTimestep()),
        latent=Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1),
        training=Training(steps=100_000, batch_size=128, learning_rate=1e-4, text_dropout=0.1, ema_decay=0.9999,
                          trainable=("_motion/",), init_from=InitFromFile(path="weights/sd1_unet.safetensors")),
        sampling=Sampling(sampler=DDIM(grid=TimestepGrid(spacing="leading", offset=1)), steps=25, guidance=7.0,
                          threshold=None))
    return Experiment(name="animatediff_v2", stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path="data/clip_l", length=77))
