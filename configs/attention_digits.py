"""A base whose cost is measured: captioned moving digits, few tokens, attention in every block.

Citation: none; the base that `experiments/scaling` has measured.
Hardware: any CPU with two cores and 8 GB.
Expected: no published result; its digits are too small to be read (pattern_digits has larger ones). Not trained by us.
Run:      vdm-jax train attention_digits
"""

from vdm_jax.attention.patterns import Full
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def base() -> Stage:
    """8 frames of 32x32 from a caption: few tokens (4x4 patches of 8x8 pixels), full spatio-temporal attention.

    Small networks on large patches predict the clean video: noise has no low-dimensional structure to squeeze through.
    Where a digit is and where it goes is decided at high noise, so the schedule is shifted there.
    """
    full, text = SelfAttention(pattern=Full()), CrossAttention()
    network = UNet(
        levels=(Level(channels=128, blocks=1, mixers=(full, text)),),
        middle=(full, text, full, text), patch=8, position_period=25.0,
        text=WordEncoder(length=16, width=64, layers=1))
    return Stage(
        name="base", video=VideoSpec(frames=8, height=32, width=32, fps=4), network=network,
        process=Process(schedule=CosineSchedule(shift=-3.0), prediction="x"),
        training=Training(steps=2600, batch_size=8, learning_rate=1.5e-3, warmup_steps=100, decay=True, ema_decay=0.99,
                          log_every=50, checkpoint_every=1000, sample_every=0, validate_every=0),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=48, guidance=1.0, batch_size=32))


def get_config() -> Experiment:
    """The base on 10,000 clips with one digit in most and two in some, of 20 pixels in frames of 64."""
    data = CaptionedDigits(train_clips=10_000, single_object_fraction=0.85, digit_side=20 / 64, track_draws=1)
    return Experiment(name="attention_digits", stages=(base(),), data=data)
