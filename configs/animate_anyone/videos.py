"""Animate Anyone, second stage: videos of a character from a picture and poses, 24 frames, by motion modules.

Citation: Hu et al. 2023, arXiv 2311.17117, sections 3.2 and 3.3: 24 frames, batch 4, 10,000 steps, temporal layers
          alone. Of the open code MooreThreads/Moore-AnimateAnyone are 512x512 pixels, every 4th frame, and motion
          modules of AnimateDiff's second version, which it begins as released; ours begin as the identity. images.py
          says more.
Hardware: 4 A100.
Expected: TikTok SSIM 0.718, PSNR 29.56, LPIPS 0.285, FVD 171.9; UBC fashion FVD 81.6. Not trained by us.
Run:      vdm-jax train animate_anyone/videos     (after animate_anyone/images, on the same data)
"""

from dataclasses import replace

from vdm_jax.networks.latent_frames import MOTION_V2
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1
from vdm_jax.networks.pose_guider import PoseGuider
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.animate_anyone import _stage
from vdm_jax_configs.animate_anyone.images import DATA, LATENT


def get_config() -> Experiment:
    """The networks of the first stage, frozen, and 453.2M parameters of motion modules."""
    stage = Stage(
        name="base", video=VideoSpec(frames=24, height=512, width=512, fps=7.5), process=_stage.PROCESS, latent=LATENT,
        network=_stage.network(LATENT_UNET_SD1, PoseGuider(), MOTION_V2),
        training=Training(steps=10_000, batch_size=4, learning_rate=1e-5, text_dropout=0.1, weight_decay=0.0,
                          random_starts=True, trainable=_stage.OVER_FRAMES,
                          init_from=InitFrom(stage="base", run="animate_anyone_images")),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=20, guidance=2.5, threshold=None))
    return Experiment(name="animate_anyone_videos", stages=(stage,),
                      data=replace(DATA, frames=24, frame_stride=4, height=512, width=512))
