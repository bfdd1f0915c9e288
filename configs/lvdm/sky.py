"""LVDM: 16 frames of 256x256 in latents of a 3-D autoencoder, without text.

Citation: He et al. 2022, arXiv 2211.13221; the authors' config lvdm_short/sky (YingqingHe/LVDM). What is not published
          is marked in _stage.py; relative positions are those of Shaw et al. 2018, of which the authors' code has a
          variant. UCF-101 and TaiChi differ by scale and shift of the latents (LVDM_LATENTS).
Hardware: not published.
Expected: FVD and KVD of 2,048 samples x 10 runs; the published values are not at hand. Not trained by us.
Run:      vdm-jax train lvdm/sky     (after vdm-jax train autoencoder/lvdm; videos of Sky Timelapse below data/sky)
"""

from vdm_jax.networks.latent_unet import LATENT_UNET_LVDM
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.lvdm import _stage


def get_config() -> Experiment:
    """548,904,580 parameters."""
    return _stage.experiment("lvdm_sky", LATENT_UNET_LVDM, 16, 6e-5)
