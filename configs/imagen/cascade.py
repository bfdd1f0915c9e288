"""Imagen: text to 64x64, 256x256 and 1024x1024 pixels, three pixel-space stages; an image is a video of one frame.

Citation: Saharia et al. 2022, arXiv 2205.11487, sections 2 and 4, appendix F. The networks are in _network.py. Choices
          of ours where we know of no published value: gamma of the ancestral sampler, steps of sampling, decay of the
          averaged weights, no decay of the learning rate (the printed one ends at an obvious misprint).
Hardware: 256 TPU v4 for the base, 128 for each super-resolution stage; 2.5 M steps of 2048 images.
Expected: FID 7.27 on COCO, zero-shot, 30k prompts at 256x256 (table 1). Parameters in the text: 2 B, 600 M, 400 M;
          those of the printed lists of layers are 2.3 B, 473 M and 469 M. Not trained by us. It takes T5-XXL
          embeddings, which a data set has to bring.
Run:      vdm-jax train imagen/cascade --stage base
"""

import math

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.schedules import CosineSchedule, LinearBetaSchedule
from vdm_jax.networks.config import UNet
from vdm_jax.stages.options import DynamicThreshold, Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.imagen import _network


def image(size: int) -> VideoSpec:
    """One frame."""
    return VideoSpec(frames=1, height=size, width=size, fps=1)


def augmentation(level: float = 0.2) -> NoiseAugmentation:
    """Noise at a level in (0, 1), a time of the cosine schedule: uniform in training, 0.1 to 0.3 in sampling (level 0
    had the best FID)."""
    return NoiseAugmentation(sampling_logsnr=-2 * math.log(math.tan(math.pi / 2 * level)))


def sampling(weight: float) -> Sampling:
    """Guidance with the paper's weight, whose 1 is our 0, and dynamic thresholding."""
    return Sampling(sampler=DDPM(), steps=256, guidance=weight - 1, threshold=DynamicThreshold(percentile=99.5))


def training(**more: object) -> Training:
    """What all stages share; Adam unless configured otherwise."""
    return Training(steps=2_500_000, batch_size=2048, learning_rate=1e-4, warmup_steps=10_000, b2=0.999,
                    text_dropout=0.1, ema_decay=0.9999, **more)


def enlarged(name: str, size: int, network: UNet, process: Process, **more: object) -> Stage:
    """A stage that makes images four times as large. How the low-resolution image is enlarged is not published."""
    return Stage(name=name, video=image(size), network=network, process=process, training=training(**more),
                 source=LowResolution(frames=1, height=size // 4, width=size // 4, augmentation=augmentation()),
                 sampling=sampling(8.0))


def get_config() -> Experiment:
    """The three stages. The last one learns from windows, 64x64 to 256x256, and samples whole images."""
    cosine = Process(schedule=CosineSchedule(), prediction="eps")
    linear = Process(schedule=LinearBetaSchedule(), prediction="eps")  # in continuous time, like the others
    base = Stage(name="base", video=image(64), network=_network.base(), process=cosine,
                 training=training(optimizer="adafactor"), sampling=sampling(1.35))
    stages = (base, enlarged("sr_256", 256, _network.sr_256(), cosine),
              enlarged("sr_1024", 1024, _network.sr_1024(), linear, crop=(256, 256)))
    return Experiment(name="imagen", stages=stages, data=WithEmbeddings(
        data=PreparedClips(path="data/images"), path="data/t5_xxl", length=128))
