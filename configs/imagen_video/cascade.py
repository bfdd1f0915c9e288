"""Imagen Video: seven pixel-space stages from text to 128 frames of 768x1280 at 24 fps, 11.6 B parameters.

Citation: Ho et al. 2022, arXiv 2210.02303. Frames, sizes, rates, kinds of mixing over frames and parameter counts of
          the stages are the paper's. It does not publish widths, block counts, batch sizes or learning rates: ours are
          such that every stage has its published number of parameters within 3 %. Layouts follow the nearest published
          networks: the first three stages UniSim's (1-2-4 multipliers, arXiv 2310.06114), the others the
          Efficient U-Net of Imagen (arXiv 2205.11487, appendix F.2). What else the paper leaves open is marked below.
Hardware: a pod slice; what each stage needs is answered by vdm-jax compile and recorded in experiments/scaling/.
Expected: CLIP score 25.19, CLIP R-precision 92.12 at 192x320 with guidance 6 (the paper's table 1, internal data and
          prompts). Not trained by us. It takes texts as T5-XXL embeddings, which a data set has to bring.
Run:      vdm-jax compile imagen_video/cascade --stage base --topology v5p-512 --mesh.fsdp 16
"""

import dataclasses
import math

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, SelfAttention, TemporalConvolution, UNet
from vdm_jax.stages.options import DynamicThreshold, Oscillation, Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec

HEADS = 64  # channels per head
TEXT = EmbeddedText(width=4096)  # T5-XXL, in all stages
# How many tokens are kept is not published: 128 here.
DATA = WithEmbeddings(data=PreparedClips(path="data/clips"), path="data/t5_xxl", length=128)
SPATIAL = SelfAttention(pattern=Spatial(), head_dim=HEADS)
TEMPORAL = SelfAttention(pattern=Temporal(), head_dim=HEADS, context="relayout")  # where clips are split over devices
CROSS, CONVOLUTION = CrossAttention(head_dim=HEADS), TemporalConvolution()
PROCESS = Process(schedule=CosineSchedule(), prediction="v")
# Training levels are random, their range is not published: uniform in time here. Sampling at SNR 3.
AUGMENTATION = NoiseAugmentation(sampling_logsnr=math.log(3.0))
TRAINING = Training(steps=1_000_000, batch_size=256, learning_rate=1e-4, warmup_steps=10_000, ema_decay=0.9999)


def sampling(steps: int, high: bool) -> Sampling:
    """Ancestral sampling with dynamic clipping; guidance oscillates between 15 and 1 in the base and the first two
    super-resolution stages (a constant 6 is what the paper compares it with). Not published: gamma, whether the
    clipping's limit is per clip or per frame, how many first steps do not oscillate (a tenth here, as in an open
    re-use), and the weight of the other stages."""
    return Sampling(
        sampler=DDPM(), steps=steps, threshold=DynamicThreshold(per="clip"), guidance=15.0 if high else 6.0,
        oscillation=Oscillation(low=1.0, constant_steps=steps // 10) if high else None)


def usual(channels: int, blocks: tuple[int, int, int], mixers: tuple, low_resolution: bool = True) -> UNet:
    """Multipliers 1-2-4 with the same mixers at all levels."""
    levels = tuple(Level(channels=channels * m, blocks=n, mixers=mixers)
                   for m, n in zip((1, 2, 4), blocks, strict=True))
    return UNet(levels=levels, middle=mixers, embedding_channels=4 * channels, embedding_layers=4, text=TEXT,
                low_resolution=low_resolution, dtype="bfloat16", remat="full")


def efficient(channels: tuple[int, ...], lowest: tuple) -> UNet:
    """The Efficient U-Net with a temporal convolution after every block, and `lowest` in addition at its lowest
    level."""
    mixers = [(CONVOLUTION,)] * 3 + [(CONVOLUTION, *lowest)]
    levels = tuple(Level(channels=c, blocks=n, mixers=m)
                   for c, n, m in zip(channels, (2, 4, 8, 8), mixers, strict=True))
    return UNet(levels=levels, resample_order="before", skip_scale=2**-0.5, embedding_channels=4 * channels[0],
                text=TEXT, low_resolution=True, dtype="bfloat16", remat="full")


def base() -> Stage:
    """5.6 B: 16 frames of 24x40 at 3 fps from text."""
    return Stage(
        name="base", video=VideoSpec(frames=16, height=24, width=40, fps=3),
        network=usual(1024, (2, 2, 2), (SPATIAL, TEMPORAL, CROSS), low_resolution=False), process=PROCESS,
        training=TRAINING, sampling=sampling(256, high=True))


def upsampled(name: str, video: VideoSpec, source: VideoSpec, network: UNet) -> Stage:
    """A super-resolution stage. Frames in between are repeated; the paper also names blank ones. The last one learns
    from windows, whose size is not published: that of Imagen."""
    return Stage(
        name=name, video=video, network=network, process=PROCESS,
        training=dataclasses.replace(TRAINING, crop=(256, 256)) if name == "spatial_1280" else TRAINING,
        source=LowResolution(frames=source.frames, height=source.height, width=source.width,
                             augmentation=AUGMENTATION),
        sampling=sampling(128, high=name in ("temporal_32", "spatial_80")))


def get_config() -> Experiment:
    """The seven stages, on clips with embedded captions. Whether temporal stages attend over space is not published;
    here they do not."""
    first = base()
    videos = {name: VideoSpec(frames=t, height=h, width=w, fps=f) for name, t, h, w, f in (
        ("temporal_32", 32, 24, 40, 6), ("spatial_80", 32, 48, 80, 6), ("spatial_320", 32, 192, 320, 6),
        ("temporal_64", 64, 192, 320, 12), ("temporal_128", 128, 192, 320, 24), ("spatial_1280", 128, 768, 1280, 24))}
    networks = {
        "temporal_32": usual(576, (2, 3, 2), (CONVOLUTION, CROSS)),  # 1.7 B
        "spatial_80": usual(512, (2, 2, 2), (SPATIAL, CONVOLUTION, CROSS)),  # 1.4 B
        "spatial_320": efficient((192, 384, 768, 1280), (SPATIAL, CROSS)),  # 1.2 B
        "temporal_64": efficient((128, 256, 768, 1024), (CROSS,)),  # 780 M
        "temporal_128": efficient((128, 256, 576, 960), (CROSS,)),  # 630 M
        "spatial_1280": efficient((128, 256, 512, 768), ())}  # 340 M, fully convolutional: text enters pooled
    stages, before = [first], first.video
    for name, video in videos.items():
        stages.append(upsampled(name, video, before, networks[name]))
        before = video
    return Experiment(name="imagen_video", stages=tuple(stages), data=DATA)
