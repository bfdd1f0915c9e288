"""LVDM, interpolation of long videos: three latents between two conditioning latents.

Citation: He et al. 2022, arXiv 2211.13221, section 3.3; the authors' config lvdm_long/sky_interp (YingqingHe/LVDM). In
          nine of ten training clips of 20 frames the first and the last latent are given, with noise as in
          lvdm/sky_prediction. What is not published is marked in _stage.py.
Hardware: not published.
Expected: no table of its own. Not trained by us.
Run:      vdm-jax train lvdm/sky_interpolation     (as for lvdm/sky)
"""

from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.networks.latent_unet import LATENT_UNET_LVDM_INTERPOLATION
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.lvdm import _stage


def get_config() -> Experiment:
    """549,181,060 parameters."""
    return _stage.experiment(
        "lvdm_sky_interpolation", LATENT_UNET_LVDM_INTERPOLATION, 20, 8e-5,
        frames_in={"frame_conditioning": "in_place", "frame_noise_steps": 250, "frame_noise_step": 100},
        masking=(FrameMask(first=1, last=1, weight=0.9), NoMask(weight=0.1)),
        sampling={"guidance": 0.1, "guided_by": "frames"})
