"""Make-Your-Video, first stage: Stable Diffusion 2.1 learns to see depth, on pictures of 256x256.

Citation: Xing et al. 2023, arXiv 2306.00943, and the authors' config and code (AILab-CVC/Make-Your-Video) for network
          and noise: an image model of text and depth comes first, on pictures. A depth map is a fifth input channel,
          MiDaS's (DPT-Hybrid) inverse depth of each frame in the size of the latents, from -1 to 1. How it was trained
          is not known to us. Ours: steps, batch, rate, a tenth of the captions dropped, no averaged weights, single
          frames of videos as pictures, and maps made smaller by the mean in place of bicubic interpolation.
Hardware: not known to us.
Expected: no numbers are known to us. Not trained by us.
Run:      vdm-jax train make_your_video/images     (weights/sd_vae.safetensors and weights/sd2_unet.safetensors by
          vdm-jax convert; captioned videos with depth maps next to them, by vdm-jax annotate --kind depth
          --range frame; captions encoded into data/open_clip_h by vdm-jax embed)
"""

from dataclasses import replace

from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.latent_unet import LATENT_UNET_SD2_DEPTH
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.make_your_video import _stage

LATENT = Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1)
DATA = VideoFolder(path="data/webvid", captions="data/webvid/captions.csv", controls="data/webvid-depth",
                   height=256, width=256, clips="one")


def get_config() -> Experiment:
    """865,913,604 parameters, 2,880 of them new and zero: the columns of the first kernel that see depth."""
    stage = Stage(
        name="base", video=VideoSpec(frames=1, height=256, width=256), process=_stage.PROCESS, latent=LATENT,
        network=_stage.network(LATENT_UNET_SD2_DEPTH),
        training=Training(steps=100_000, batch_size=64, learning_rate=5e-5, weight_decay=0.01, ema_decay=0.0,
                          text_dropout=0.1, random_starts=True,
                          init_from=InitFromFile(path="weights/sd2_unet.safetensors")),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=50, guidance=6.5, threshold=None))
    return Experiment(name="make_your_video_images", stages=(stage,), data=WithEmbeddings(
        data=replace(DATA, frames=1), path="data/open_clip_h", length=77))
