"""Make-Your-Video, second stage: temporal layers, on clips of 16 frames of 256x256 with text and depth.

Citation: Xing et al. 2023, arXiv 2306.00943, and the authors' config and code (AILab-CVC/Make-Your-Video): after each
          residual block five convolutions, four over three frames and one over 3x3 pixels, after each transformer two
          temporal self-attentions with relative positions, in which a frame sees itself and 15 before it. Spatial
          layers are frozen, the clips are WebVid-10M's. Sampled with every second frame of a video, 50 steps of DDIM
          with eta 1 and the scale 7.5; up to 64 frames in the code. Not known to us: steps, batch and rate, and how
          often the paper masks attention at random in training, which is left out. Ours: these numbers, a tenth of the
          captions dropped, no averaged weights, 30 frames per second of the videos.
Hardware: 13 s and 20 GB to sample 16 frames on an A100; of training not known to us.
Expected: no numbers are known to us: the paper reports FVD and KVD on UCF-101 and MSR-VTT, and consistency with
          structure, prompt and over time. Not trained by us.
Run:      vdm-jax train make_your_video/videos     (after make_your_video/images, on the same data; then vdm-jax sample
          make_your_video_videos TEXT --control depth.mp4, with --num-frames 64 for a longer video)
"""

from dataclasses import replace

from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.networks.latent_unet import LATENT_UNET_MAKE_YOUR_VIDEO
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.make_your_video import _stage
from vdm_jax_configs.make_your_video.images import DATA, LATENT


def get_config() -> Experiment:
    """1,605,838,852 parameters of the U-Net: 865,913,604 spatial ones, 466,939,200 of temporal convolutions and
    272,986,048 of temporal transformers. Sampling with the scale 7.5, which is w = 6.5."""
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=256, width=256, fps=15), process=_stage.PROCESS, latent=LATENT,
        network=_stage.network(LATENT_UNET_MAKE_YOUR_VIDEO),
        training=Training(steps=100_000, batch_size=64, learning_rate=5e-5, weight_decay=0.01, ema_decay=0.0,
                          text_dropout=0.1, random_starts=True, trainable=_stage.OVER_FRAMES,
                          init_from=InitFrom(stage="base", run="make_your_video_images")),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=50, guidance=6.5, threshold=None))
    return Experiment(name="make_your_video_videos", stages=(stage,), data=WithEmbeddings(
        data=replace(DATA, frames=16, frame_stride=2), path="data/open_clip_h", length=77))
