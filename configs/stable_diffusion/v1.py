"""Stable Diffusion 1.x: text to 512x512 pixels in the latents of a KL autoencoder, f = 8.

Citation: Rombach et al. 2022, arXiv 2112.10752; the released model's config and card (CompVis/stable-diffusion). Ours
          where nothing is published: see _stage.py. The 934,000 steps at 512x512 (194,000 of v1-1, 515,000 of v1-2,
          225,000 of v1-4) are one run here, with a tenth of the captions dropped throughout and not in v1-4 alone; the
          237,000 steps at 256x256 before them are --base.video.height 256 --base.video.width 256.
Hardware: 256 A100 (32 hosts of 8), batch 2048; about 150,000 A100 hours in all.
Expected: no table of its own; the 1.45 B model of the paper has FID 12.63 on COCO with guidance. Not trained by us.
          Training goes on from released weights with Training(init_from=InitFromFile(path="unet.safetensors")), a file
          of vdm-jax convert FOLDER/unet unet.safetensors.
Run:      vdm-jax train stable_diffusion/v1     (weights/sd_vae.safetensors by vdm-jax convert FOLDER/vae; images
          prepared as clips of one frame; 77 last hidden states of CLIP ViT-L/14 for each caption by write_embeddings)
"""

from vdm_jax.networks.latent_unet import LATENT_UNET_SD1
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.stable_diffusion import _stage


def get_config() -> Experiment:
    """The released model predicts noise."""
    return _stage.experiment("stable_diffusion_v1", LATENT_UNET_SD1, 512, "eps", 934_000, "data/clip_l")
