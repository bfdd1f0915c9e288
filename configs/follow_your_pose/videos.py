"""Follow Your Pose, second stage: temporal layers are trained on videos without poses, 12 frames of 512x512.

Citation: Ma et al. 2023, arXiv 2304.01186; the authors' code and config (mayuelala/FollowYourPose): clips of 12 frames,
          every fourth of the video, one on each of 8 GPUs, 5,000 steps (a review of the paper has 50,000) at rate 3e-5
          without warm-up or decay; trained are the queries of self- and cross-attention, temporal attention and a
          temporal convolution of rank 160 after it. The encoder of the first stage is not run, and comes in again in
          sampling. Ours: a twentieth of the captions dropped, temporal attention that begins as the identity, and no
          averaged weights.
Hardware: 8 A100.
Expected: no numbers are known to us: the paper reports CLIP score, pose accuracy and consistency of frames next to
          Tune-A-Video and ControlNet. Not trained by us.
Run:      vdm-jax train follow_your_pose/videos     (after follow_your_pose/images; captioned videos such as HDVILA's in
          data/hdvila, captions in the same data/clip_l; then vdm-jax sample follow_your_pose_videos TEXT --control
          poses.mp4)
"""

from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.latent_unet import LATENT_UNET_FOLLOW_YOUR_POSE
from vdm_jax.networks.t2i_adapter import T2I_ADAPTER_SD1
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.follow_your_pose import _stage
from vdm_jax_configs.follow_your_pose.images import LATENT


def get_config() -> Experiment:
    """Sampling with the scale 12.5, which is w = 11.5."""
    stage = Stage(
        name="base", video=VideoSpec(frames=12, height=512, width=512, fps=7.5), process=_stage.PROCESS, latent=LATENT,
        network=_stage.network(LATENT_UNET_FOLLOW_YOUR_POSE, T2I_ADAPTER_SD1, pose_free=True),
        training=Training(steps=5000, batch_size=8, learning_rate=3e-5, warmup_steps=0, b2=0.999, weight_decay=0.01,
                          ema_decay=0.0, text_dropout=0.05, random_starts=True, trainable=_stage.OVER_FRAMES,
                          init_from=InitFrom(stage="base", run="follow_your_pose_images")),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=50, guidance=11.5, threshold=None))
    videos = VideoFolder(path="data/hdvila", captions="data/hdvila/captions.csv", frames=12, frame_stride=4,
                         height=512, width=512, clips="one")
    return Experiment(name="follow_your_pose_videos", stages=(stage,),
                      data=WithEmbeddings(data=videos, path="data/clip_l", length=77))
