"""Imagen Video's base with full spatio-temporal attention in place of spatial and temporal attention.

Citation: none; the question is ours. The base is that of configs/imagen_video/cascade.py (Ho et al. 2022, arXiv
          2210.02303), whose notes on what is published hold here too. At its three resolutions a clip has 15,360, 3,840
          and 960 tokens, and every token sees all.
Hardware: a pod slice; recorded in experiments/scaling/.
Expected: nothing published. Not trained by us.
Run:      vdm-jax compile imagen_video/full_attention --topology v5p-512 --mesh.fsdp 16
"""

from vdm_jax.attention.patterns import Full
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, SelfAttention, UNet
from vdm_jax.stages.options import DynamicThreshold, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def get_config() -> Experiment:
    """The base alone, on clips with embedded captions."""
    # The context matters where clips are split over devices: heads 16, 32 and 64 divide by up to 16 of them.
    mixers = (SelfAttention(pattern=Full(), head_dim=64, context="ulysses"), CrossAttention(head_dim=64))
    network = UNet(
        levels=tuple(Level(channels=1024 * m, blocks=2, mixers=mixers) for m in (1, 2, 4)), middle=mixers,
        embedding_channels=4096, embedding_layers=4, text=EmbeddedText(width=4096), dtype="bfloat16", remat="full")
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=24, width=40, fps=3), network=network,
        process=Process(schedule=CosineSchedule(), prediction="v"),
        training=Training(steps=1_000_000, batch_size=256, learning_rate=1e-4, warmup_steps=10_000, ema_decay=0.9999),
        sampling=Sampling(sampler=DDPM(), steps=256, guidance=6.0, threshold=DynamicThreshold(per="clip")))
    return Experiment(name="imagen_video_full_attention", stages=(stage,),
                      data=WithEmbeddings(data=PreparedClips(path="data/clips"), path="data/t5_xxl", length=128))
