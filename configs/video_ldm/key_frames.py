"""Video LDM, text to video: key frames at 1.875 frames per second, 320x512.

Citation: Blattmann et al. 2023, arXiv 2304.08818, section 4.2. Temporal layers between those of Stable Diffusion
          2.x, which stay as they are. What is not published is marked in _stage.py. 8 key frames, since their gaps,
          filled twice with 3 frames, give the 113 frames of the videos shown.
Hardware: not published for this model.
Expected: with all stages, FVD 550.61 and IS 33.45 on UCF-101, zero-shot. Not trained by us.
Run:      vdm-jax train video_ldm/key_frames     (weights/sd_vae.safetensors and weights/sd2_unet.safetensors by
          vdm-jax convert; clips made by vdm-jax prepare; 77 states of OpenCLIP ViT-H/14 for each caption)
"""

from vdm_jax.networks.latent_unet import LATENT_UNET_VIDEO_LDM
from vdm_jax.stages.options import InitFromFile
from vdm_jax.stages.stage import Experiment, VideoSpec
from vdm_jax_configs.video_ldm import _stage


def get_config() -> Experiment:
    """865.9M parameters within frames and 656.1M over frames; 14,000 steps."""
    video = VideoSpec(frames=8, height=320, width=512, fps=1.875)
    return _stage.experiment(
        "video_ldm_key_frames", LATENT_UNET_VIDEO_LDM, "data/open_clip_h", video, 14_000,
        training={"trainable": _stage.OVER_FRAMES, "init_from": InitFromFile(path="weights/sd2_unet.safetensors")})
