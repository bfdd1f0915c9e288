"""LVDM, prediction of long videos: the latents that follow a conditioning latent, or an unconditional clip.

Citation: He et al. 2022, arXiv 2211.13221, section 3.3; the authors' config lvdm_long/sky_pred (YingqingHe/LVDM). In
          half of the training clips the first latent, of 4 frames, is known, with noise of a timestep below 250
          ("conditional latent perturbation"); in sampling the timestep is 100, and guidance goes by what is known, with
          w = 0.1. What is not published is marked in _stage.py.
Hardware: not published.
Expected: no table of its own; videos of more than 1,000 frames are shown. Not trained by us.
Run:      vdm-jax train lvdm/sky_prediction     (as for lvdm/sky)
"""

from vdm_jax.conditions.frame_masks import FramesKnown, NothingKnown
from vdm_jax.networks.latent_unet import LATENT_UNET_LVDM_PREDICTION
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.lvdm import _stage


def get_config() -> Experiment:
    """549,163,908 parameters."""
    return _stage.experiment(
        "lvdm_sky_prediction", LATENT_UNET_LVDM_PREDICTION, 16, 8e-5,
        known={"known": "in_place", "known_steps": 250, "known_step": 100},
        observations=(FramesKnown(first=1, weight=0.5), NothingKnown(weight=0.5)),
        sampling={"guidance": 0.1, "guided_by": "known"})
