"""Stable Video Diffusion: a picture to 14 frames of 576x1024, in latents.

Citation: Blattmann et al. 2023, arXiv 2311.15127, appendix D; sampling as in the authors' code (generative-models).
          What is not published is marked in _stage.py.
Hardware: batch 768; about 200,000 A100 hours for all phases of all models of the paper.
Expected: no table of image to video; the text-to-video model has FVD 242.02 on UCF-101, zero-shot. Not trained by us.
          Training goes on from released weights, of this or of an image network, with
          Training(init_from=InitFromFile(path="unet.safetensors")), a file of vdm-jax convert FOLDER/unet
          unet.safetensors.
Run:      vdm-jax train svd/image_to_video_14     (weights/svd_vae.safetensors by vdm-jax convert FOLDER/vae; clips made
          by vdm-jax prepare; the CLIP ViT-H/14 embedding of each clip's first frame by write_embeddings)
"""

from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.svd import _stage


def get_config() -> Experiment:
    """Guidance grows along the clip, 1 + w from 1 to 2.5."""
    return _stage.experiment("svd_image_to_video_14", 14, (0.0, 1.5), 25)
