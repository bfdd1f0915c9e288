"""The image U-Net of Progressive Distillation on ImageNet 64x64, 296 M parameters; an image is a video of one frame.

Citation: Salimans & Ho 2022, arXiv 2202.00512; layers as in the authors' published code (192 channels, multipliers
          1-2-3-4, three blocks, attention at 32, 16 and 8, a vector of 768 channels, 1000 classes). Theirs predicts x
          and eps in six output channels; ours predicts v in three. Optimisation and loss are ours, not the paper's.
Hardware: not published in our sources.
Expected: nothing to compare with: this is the teacher before any distillation. Not trained by us.
Run:      vdm-jax train progressive_distillation/imagenet_64
"""

from vdm_jax.attention.patterns import Spatial
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def get_config() -> Experiment:
    """One stage, on images with labels."""
    mixers = (SelfAttention(pattern=Spatial(), head_dim=64, position="none"),)
    levels = tuple(Level(channels=192 * m, blocks=3, mixers=mixers if m > 1 else ()) for m in (1, 2, 3, 4))
    network = UNet(levels=levels, middle=mixers, embedding_channels=768, resample="biggan", groups=32, classes=1000,
                   dtype="bfloat16")
    stage = Stage(
        name="base", video=VideoSpec(frames=1, height=64, width=64, fps=1), network=network,
        process=Process(schedule=CosineSchedule(), prediction="v"),
        training=Training(steps=500_000, batch_size=2048, learning_rate=1e-4, warmup_steps=1000, b2=0.999,
                          ema_decay=0.9999, text_dropout=0.0),
        sampling=Sampling(steps=256))
    return Experiment(name="progressive_distillation_imagenet_64", stages=(stage,),
                      data=PreparedClips(path="data/imagenet_64"))
