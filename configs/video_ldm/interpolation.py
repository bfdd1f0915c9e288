"""Video LDM, interpolation: three frames between two key frames, from 1.875 to 7.5 frames per second.

Citation: Blattmann et al. 2023, arXiv 2304.08818, section 3.3. All parameters are trained. The published count, 1,509M,
          is that of the sizes of Stable Diffusion 1.x. A class says which rate is made: 0 for 1.875 to 7.5, 1 for 7.5
          to 30 (--base.network.rate 1 --base.video.fps 30); the paper trains one network on both. Key frames have noise
          of a timestep up to 250 in training; the least, timestep 0, in sampling and that the network is not
          conditioned on it are ours.
Hardware: 128 A100 for 95,000 steps (as the paper is summarised).
Expected: no table of its own. Not trained by us.
Run:      vdm-jax train video_ldm/interpolation     (as for video_ldm/key_frames, with CLIP ViT-L/14)
"""

from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.networks.latent_unet import LATENT_UNET_VIDEO_LDM_INTERPOLATION
from vdm_jax.stages.stage import Experiment, KeyFrames, VideoSpec
from vdm_jax_configs.video_ldm import _stage


def get_config() -> Experiment:
    """Clips of five frames, of which the first and the last are given."""
    video = VideoSpec(frames=5, height=320, width=512, fps=7.5)
    return _stage.experiment(
        "video_ldm_interpolation", LATENT_UNET_VIDEO_LDM_INTERPOLATION, "data/clip_l", video, 95_000,
        source=KeyFrames(frames=2, every=4),
        network={"frame_conditioning": "layers", "rate": 0, "frame_noise_steps": 251, "frame_noise_step": 0},
        training={"masking": (FrameMask(first=1, last=1),)})
