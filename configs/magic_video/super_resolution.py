"""MagicVideo, super-resolution: pictures of 256x256 to 1024x1024, in pixels.

Citation: Zhou et al. 2022, arXiv 2211.11018, by its abstract and public notes: a diffusion model on pixels that makes
          256x256 to 1024x1024, trained on pictures alone. Not known to us: its network, conditioning, noise, data,
          batch, steps, rate and sampling. Ours, in their place: levels and blocks of Imagen's last network without
          text, noise on the small picture, windows of 256x256 in training.
Hardware: not known to us.
Expected: no table of its own. Not trained by us.
Run:      vdm-jax train magic_video/super_resolution --run runs/magic_video_super_resolution     (pictures in
          data/pictures)
"""

from vdm_jax.data.image_folder import ImageFolder
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.magic_video import _stage

NETWORK = _stage.super_resolution(128, (1, 2, 4, 8), (2, 4, 8, 8), groups=32, dtype="bfloat16", remat="full",
                                  sharded_axis="height")


def get_config() -> Experiment:
    """Pictures are videos of one frame."""
    stage = Stage(
        name="super_resolution", video=VideoSpec(frames=1, height=1024, width=1024, fps=1), process=_stage.PIXELS,
        source=LowResolution(frames=1, height=256, width=256), network=NETWORK,
        training=Training(steps=500_000, batch_size=256, learning_rate=1e-4, warmup_steps=10_000, ema_decay=0.9999,
                          crop=(256, 256)),
        sampling=Sampling(steps=50))
    return Experiment(name="magic_video_super_resolution", stages=(stage,), data=ImageFolder(
        path="data/pictures", height=1024, width=1024))
