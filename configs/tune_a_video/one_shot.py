"""Tune-A-Video: Stable Diffusion 1.4 with sparse-causal and temporal attention, tuned on one captioned video.

Citation: Wu et al. 2022, arXiv 2212.11565; the authors' code and configs (showlab/Tune-A-Video): 500 steps of one clip
          of 24 frames, every second of the video (the paper says 32), learning rate 3e-5 without warm-up or decay;
          trained are the queries of self- and cross-attention and all of the temporal attention. Ours: a twentieth of
          the captions dropped, which guidance asks for, and no averaged weights.
Hardware: one GPU; about 10 minutes of an A100 to tune, 1 to sample.
Expected: on 42 DAVIS videos with 140 prompts CLIP frame consistency 92.40 and textual alignment 27.58. Not trained by
          us.
Run:      vdm-jax train tune_a_video/one_shot     (weights/sd_vae.safetensors and weights/sd1_unet.safetensors by
          vdm-jax convert; data/one_video with the video and captions.csv; its caption encoded into data/clip_l by
          vdm-jax embed; then vdm-jax edit VIDEO --model tune_a_video_one_shot --method tune_a_video --prompt TEXT)
"""

from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_TUNE_A_VIDEO
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

TRAINABLE = ("/self_attention/query/", "/cross_attention/query/", "/temporal_attention/")


def get_config() -> Experiment:
    """Sampling with the scale 12.5, which is w = 11.5."""
    betas = ScaledLinearBetaSchedule()
    stage = Stage(
        name="base", video=VideoSpec(frames=24, height=512, width=512, fps=12),
        network=LatentNetwork(unet=LATENT_UNET_TUNE_A_VIDEO, timesteps=betas, text=EmbeddedText(width=768)),
        process=Process(schedule=betas, prediction="eps", level_sampling=UniformTimestep()),
        latent=Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1),
        training=Training(steps=500, batch_size=1, learning_rate=3e-5, warmup_steps=0, b2=0.999, weight_decay=0.01,
                          ema_decay=0.0, text_dropout=0.05, checkpoint_every=100, sample_every=0, validate_every=0,
                          trainable=TRAINABLE, init_from=InitFromFile(path="weights/sd1_unet.safetensors")),
        sampling=Sampling(sampler=DDIM(grid=TimestepGrid(spacing="leading", offset=1)), steps=50, guidance=11.5,
                          threshold=None))
    video = VideoFolder(path="data/one_video", captions="data/one_video/captions.csv", frames=24, height=512, width=512,
                        frame_stride=2, clips="one", fractions=(1.0, 0.0, 0.0))
    return Experiment(name="tune_a_video_one_shot", stages=(stage,), validation_split="train",
                      data=WithEmbeddings(data=video, path="data/clip_l", length=77))
