"""Video LDM, prediction: continues a video from its first frames, or generates one.

Citation: Blattmann et al. 2023, arXiv 2304.08818, section 3.2. Temporal layers see the conditioning latents and
their
          mask, halved by learned convolutions to the size of each level; here by a map in front of each that starts at
          zero, as how they enter is not published. Training clips have 0, 1 or 2 conditioning frames with equal
          probability; guidance leaves the conditioning frames out ("context guidance"), with a weight that is ours.
Hardware: 256 A100 for 402,000 steps (as the paper is summarised).
Expected: FVD 508.82 with context guidance, 534.17 without, in an ablation of smaller driving models. Not trained by us.
Run:      vdm-jax train video_ldm/prediction     (as for video_ldm/key_frames)
"""

from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.networks.latent_unet import LATENT_UNET_VIDEO_LDM_PREDICTION
from vdm_jax.stages.options import InitFromFile
from vdm_jax.stages.stage import Experiment, VideoSpec
from vdm_jax_configs.video_ldm import _stage


def get_config() -> Experiment:
    """That of the key frames, conditioned on frames."""
    video = VideoSpec(frames=8, height=320, width=512, fps=1.875)
    return _stage.experiment(
        "video_ldm_prediction", LATENT_UNET_VIDEO_LDM_PREDICTION, "data/open_clip_h", video, 402_000,
        network={"frame_conditioning": "layers"},
        training={"trainable": _stage.OVER_FRAMES, "init_from": InitFromFile(path="weights/sd2_unet.safetensors"),
                  "masking": (NoMask(), FrameMask(first=1), FrameMask(first=2))},
        sampling={"guidance": 1.0, "guided_by": "frames"})
