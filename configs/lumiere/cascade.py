"""Lumiere: text to 80 frames of 128x128 at 16 fps in one network that also shrinks clips in time, then 1024x1024.

Citation: Bar-Tal et al. 2024, arXiv 2401.12945. Frames, sizes, rate, the two stages, the kinds of blocks, frozen image
          weights and windows that share two frames are the paper's. It does not publish the image networks, widths,
          temporal factors, window length, batch sizes, learning rates, process or sampler: the image networks here have
          the layout of Imagen's (Saharia et al. 2022, arXiv 2205.11487, appendix F) at half its base width, the rest is
          ours.
Hardware: a pod slice; not published. vdm-jax compile answers what each stage needs.
Expected: UCF101 zero-shot FVD 332.49, IS 37.54 (the paper's table; 30 M captioned videos of its own). Not trained by
          us. It takes texts as T5-XXL embeddings, which a data set has to bring, and the run of lumiere/images.
Run:      vdm-jax compile lumiere/cascade --stage base --topology v5p-512 --mesh.fsdp 4 --mesh.context 2
"""

from vdm_jax.attention.patterns import Spatial
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, SelfAttention, UNet
from vdm_jax.stages.options import DynamicThreshold, InitFrom, Sampling, Training, Windows
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.lumiere._network import ADDED, inflated

HEADS = 64  # channels per head
TEXT = EmbeddedText(width=4096)  # T5-XXL
MIXERS = (SelfAttention(pattern=Spatial(), head_dim=HEADS), CrossAttention(head_dim=HEADS))
PROCESS = Process(schedule=CosineSchedule(), prediction="v")
IMAGES = "lumiere_images"  # run of configs/lumiere/images.py
CLIPS = WithEmbeddings(data=PreparedClips(path="data/clips"), path="data/t5_xxl", length=128)


def image_base() -> UNet:
    """Text to image at 128x128: Imagen's base with attention at 32 and 16 rows."""
    levels = tuple(Level(channels=256 * m, blocks=3, mixers=MIXERS if m > 2 else ()) for m in (1, 2, 3, 4))
    return UNet(levels=levels, middle=MIXERS, embedding_channels=1024, embedding_layers=2, text=TEXT, dtype="bfloat16",
                remat="full")


def image_super_resolution() -> UNet:
    """128x128 to 1024x1024: Imagen's Efficient U-Net; text at the lowest level, where frames have 64x64 positions."""
    levels = tuple(Level(channels=128 * m, blocks=n, mixers=MIXERS[1:] if m == 8 else ())
                   for m, n in ((1, 2), (2, 4), (4, 8), (8, 8)))
    return UNet(levels=levels, resample_order="before", skip_scale=2**-0.5, embedding_channels=512, text=TEXT,
                low_resolution=True, dtype="bfloat16", remat="full", sharded_axis="height")


def base() -> Stage:
    """80 frames at once: the lowest of the four levels has 10 of 16x16 positions."""
    return Stage(
        name="base", video=VideoSpec(frames=80, height=128, width=128, fps=16),
        network=inflated(image_base(), (2, 2, 2, 1), HEADS), process=PROCESS,
        training=Training(steps=500_000, batch_size=128, learning_rate=1e-4, warmup_steps=10_000, ema_decay=0.9999,
                          init_from=InitFrom(stage="base", run=IMAGES), trainable=ADDED),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=256, guidance=8.0, threshold=DynamicThreshold(per="clip"),
                          batch_size=8))


def super_resolution() -> Stage:
    """Learnt on 16 frames, sampled on 80 by windows of 16. The first of the four reductions keeps all frames, so that
    the lowest level has two of a window."""
    return Stage(
        name="spatial", video=VideoSpec(frames=80, height=1024, width=1024, fps=16),
        source=LowResolution(frames=80, height=128, width=128),
        network=inflated(image_super_resolution(), (1, 2, 2, 2), HEADS), process=PROCESS,
        training=Training(steps=500_000, frames=16, batch_size=128, learning_rate=1e-4, warmup_steps=10_000,
                          ema_decay=0.9999, init_from=InitFrom(stage="spatial", run=IMAGES), trainable=ADDED),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=128, guidance=4.0, threshold=DynamicThreshold(per="clip"),
                          windows=Windows(frames=16, overlap=2), batch_size=8))


def get_config() -> Experiment:
    """The two stages, on clips with embedded captions."""
    return Experiment(name="lumiere", stages=(base(), super_resolution()), data=CLIPS)
