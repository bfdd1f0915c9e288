"""Stable Diffusion 2.x, the 768 model: text to 768x768 pixels in latents, predicting v.

Citation: Rombach et al. 2022, arXiv 2112.10752; the released models' configs and README (Stability-AI/stablediffusion).
          Ours where nothing is published: see _stage.py, whose batch and optimiser are those of v1. Before these
          140,000 steps there are 550,000 at 256x256, 850,000 at 512x512 (both predict noise) and 150,000 with v.
Hardware: 256 A100, as v1; what it takes on other machines is answered by vdm-jax compile.
Expected: no table of its own. Not trained by us.
Run:      vdm-jax train stable_diffusion/v2     (as v1; 77 penultimate states of OpenCLIP ViT-H/14 for each caption)
"""

from vdm_jax.networks.latent_unet import LATENT_UNET_SD2
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.stable_diffusion import _stage


def get_config() -> Experiment:
    """The base model is the same at 512x512 with prediction 'eps'."""
    return _stage.experiment("stable_diffusion_v2", LATENT_UNET_SD2, 768, "v", 140_000, "data/openclip_h")
