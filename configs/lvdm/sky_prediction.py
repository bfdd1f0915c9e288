"""LVDM, prediction of long videos: the latents that follow a conditioning latent, or an unconditional clip.

Citation: He et al. 2022, arXiv 2211.13221, section 3.3; the authors' config lvdm_long/sky_pred (YingqingHe/LVDM). In
          half of the training clips the first latent, of 4 frames, is given, with noise of a timestep below 250
          ("conditional latent perturbation"); in sampling the timestep is 100, and guidance leaves the conditioning
          frames out, with w = 0.1. What is not published is marked in _stage.py.
Hardware: not published.
Expected: no table of its own; videos of more than 1,000 frames are shown. Not trained by us.
Run:      vdm-jax train lvdm/sky_prediction     (as for lvdm/sky)
"""

from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.networks.latent_unet import LATENT_UNET_LVDM_PREDICTION
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.lvdm import _stage


def get_config() -> Experiment:
    """549,163,908 parameters."""
    return _stage.experiment(
        "lvdm_sky_prediction", LATENT_UNET_LVDM_PREDICTION, 16, 8e-5,
        frames_in={"frame_conditioning": "in_place", "frame_noise_steps": 250, "frame_noise_step": 100},
        masking=(FrameMask(first=1, weight=0.5), NoMask(weight=0.5)),
        sampling={"guidance": 0.1, "guided_by": "frames"})
