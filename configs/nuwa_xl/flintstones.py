"""NUWA-XL's Mask Temporal Diffusion: one network for key frames and for the frames between them, clips of 16 frames.

Citation: Yin et al. 2023, arXiv 2303.12346, sections 3.2 and 3.3. Published: latents of T-KLVAE without compression of
          time, CLIP text with one prompt per frame, eps prediction, conditioning frames and mask injected after the
          temporal convolution at every scale, on the way down and up, by convolutions that start at zero; training on
          temporally sparse clips, with first and last frame given or none. Not published, and ours: widths, levels,
          heads, schedule, optimiser, batch, steps, dropped prompts, guidance, the share of each mask (and of clips with
          the first frame alone), how the mask is brought to a level's size (averaged). Here a training clip has one
          prompt; scripts give one per frame.
Hardware: not published.
Expected: B-FVD-16 of 580.21, 609.32 and 642.87 at 16, 256 and 1,024 frames of 256x256. Not trained by us.
Run:      vdm-jax train nuwa_xl/flintstones     (runs/t_klvae by vdm-jax train autoencoder/t_klvae; clips made by
          vdm-jax prepare; last hidden states of CLIP ViT-L/14 for each caption by write_embeddings)
          vdm-jax sample nuwa_xl_flintstones --script story.txt --frames 3376 --extend nuwa_xl --out long.mp4
"""

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_T_KL
from vdm_jax.networks.config import (
    CrossAttention,
    EmbeddedText,
    FrameInjection,
    Level,
    SelfAttention,
    TemporalConvolution,
    UNet,
)
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

BEFORE = (TemporalConvolution(), FrameInjection())
MIXERS = (*BEFORE, SelfAttention(pattern=Spatial(), head_dim=40), CrossAttention(head_dim=40),
          SelfAttention(pattern=Temporal(), head_dim=40))


def get_config() -> Experiment:
    """Widths of Stable Diffusion's U-Net, whose latents the paper's have the form of."""
    levels = tuple(Level(channels=width, mixers=MIXERS) for width in (320, 640, 1280))
    levels = (*levels, Level(channels=1280, mixers=BEFORE))
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=256, width=256, fps=8),
        network=UNet(levels=levels, middle=MIXERS, out_channels=4, embedding_channels=1280, groups=32,
                     text=EmbeddedText(width=768), conditioning_frames=True),
        process=Process(schedule=ScaledLinearBetaSchedule(), prediction="eps", level_sampling=UniformTimestep()),
        latent=Latent(autoencoder=AUTOENCODER_T_KL, weights="runs/t_klvae"),
        training=Training(steps=200_000, batch_size=64, learning_rate=1e-4, text_dropout=0.1, ema_decay=0.9999,
                          masking=(NoMask(), FrameMask(first=1, last=1), FrameMask(first=1))),
        sampling=Sampling(sampler=DDPM(), steps=250, guidance=6.5, threshold=None))
    return Experiment(name="nuwa_xl_flintstones", stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/flintstones_sparse"), path="data/clip_l", length=77))
