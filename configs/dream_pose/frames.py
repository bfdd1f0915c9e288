"""DreamPose, first phase: a dressed person in given poses, frame by frame, 640x512, from a picture as tokens.

Citation: Karras et al. 2023, arXiv 2304.06025; the authors' code (johannakarras/DreamPose): Stable Diffusion 1.4 whose
          first kernel has 14 input channels, five DensePose maps of two channels around each frame; batch 16, rate 5e-6
          without warm-up or decay, and picture, poses or both left out of a twentieth of the samples each; 100 steps of
          PNDM with scales 8 and 3, one noise for all frames. 5 epochs (a review of the paper) are about 38,000 steps of
          339 videos of some 12 s at 30 frames per second. Ours: clips of eight frames, two in a batch; one picture for
          each video; a picture that is left out has latents of zeros; the adapter's map begins without offsets; no
          averaged weights; beyond the first and the last frame of a clip, in training too, a frame's own pose is
          repeated.
Hardware: 2 A100; 18 s per frame to sample.
Expected: UBC fashion SSIM 0.885, LPIPS 0.068, FVD 238.7 after both phases, in the table of Animate Anyone. Not trained
          by us.
Run:      vdm-jax train dream_pose/frames     (weights/sd_vae.safetensors and weights/sd1_unet.safetensors by vdm-jax
          convert; videos, and of each DensePose maps as a video whose red and green are its two channels, a picture,
          and its tokens by CLIP ViT-B/32: vdm-jax embed data/pictures --encoder models/clip --hidden --last)
"""

from dataclasses import replace

from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1
from vdm_jax.networks.picture_adapter import PictureAdapter
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.dream_pose import _stage

LATENT = Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1)
DATA = VideoFolder(path="data/fashion", references="data/fashion_pictures", image_prompts="data/fashion_vectors",
                   controls="data/fashion-densepose", frames=8, height=640, width=512)


def get_config() -> Experiment:
    """859.5M parameters of the U-Net with 28,800 more in its first kernel, and 1.0M of the adapter."""
    stage = Stage(
        name="base", video=VideoSpec(frames=8, height=640, width=512, fps=30), process=_stage.PROCESS, latent=LATENT,
        network=_stage.network(replace(LATENT_UNET_SD1, in_channels=14), PictureAdapter()),
        training=Training(steps=38_000, batch_size=2, learning_rate=5e-6, warmup_steps=0, b2=0.999, weight_decay=0.01,
                          ema_decay=0.0, text_dropout=0.0, dropout=_stage.DROPOUT, random_starts=True,
                          init_from=InitFromFile(path="weights/sd1_unet.safetensors")),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=100, terms=_stage.TERMS, threshold=None, shared_noise=True))
    return Experiment(name="dream_pose_frames", stages=(stage,), data=DATA)
