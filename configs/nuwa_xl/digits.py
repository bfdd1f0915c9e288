"""NUWA-XL on stories of digits: clips of 8 frames of 16x16 at three time scales, for videos of 8, 50 and 344 frames.

Citation: Yin et al. 2023, arXiv 2303.12346, for the hierarchy and the injection of conditioning frames; data, sizes and
          training are ours. Pixels, words, one prompt per frame.
Hardware: not measured.
Expected: no result is published for this data. Not trained by us.
Run:      vdm-jax train nuwa_xl/digits
          vdm-jax sample nuwa_xl_digits --script story.txt --frames 344 --extend nuwa_xl --out long.mp4
"""

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.data.digit_stories import DigitStories
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import (
    CrossAttention,
    FrameInjection,
    Level,
    SelfAttention,
    TemporalConvolution,
    UNet,
    WordEncoder,
)
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

BEFORE = (TemporalConvolution(), FrameInjection())
MIXERS = (*BEFORE, SelfAttention(pattern=Spatial(), head_dim=16), CrossAttention(head_dim=16),
          SelfAttention(pattern=Temporal(), head_dim=16, position="learned"))


def get_config() -> Experiment:
    """Two levels, 16x16 and 8x8; the injection is at both."""
    stage = Stage(
        name="base", video=VideoSpec(frames=8, height=16, width=16, fps=8),
        network=UNet(levels=(Level(channels=32, mixers=BEFORE), Level(channels=64, mixers=MIXERS)), middle=MIXERS,
                     embedding_channels=64, text=WordEncoder(length=8, width=32, layers=1), position_period=32.0,
                     conditioning_frames=True),
        process=Process(prediction="x"),
        training=Training(steps=20_000, batch_size=32, learning_rate=3e-4, random_starts=True,
                          masking=(NoMask(), FrameMask(first=1, last=1, weight=2.0), FrameMask(first=1))),
        sampling=Sampling(steps=50, guidance=1.0))
    return Experiment(name="nuwa_xl_digits", stages=(stage,), data=DigitStories(
        length=344, act=49, size=16, frames=8, strides=(1, 7, 49)))
