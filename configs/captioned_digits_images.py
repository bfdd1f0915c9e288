"""Single frames of captioned digits: the image network as which the base of captioned_digits_full begins.

Citation: images first, then video (Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section 3.2), in miniature.
Hardware: two CPU cores over a night; training goes on where it stopped.
Expected: no published result. Not trained by us.
Run:      vdm-jax train captioned_digits_images
"""

from vdm_jax.attention.patterns import Full
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.diffusion.weightings import TruncatedSNRWeighting
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

# Where a digit is is decided below an SNR of 1, and its shape above.
PROCESS = Process(schedule=CosineSchedule(shift=-1.0), prediction="x", weighting=TruncatedSNRWeighting(gamma=5.0))
DATA = CaptionedDigits(train_clips=40_000)  # of one and two digits
FULL, TEXT = SelfAttention(pattern=Full()), CrossAttention()


def network() -> UNet:
    """Convolutions on 8x8 patches of 2x2 pixels and on 4x4 positions below. The caption enters by cross-attention
    everywhere, and pooled by attention, since one of its words says which digit to draw. Attention over 4x4 positions
    is over all frames, which an image has one of."""
    return UNet(
        levels=(Level(channels=96, blocks=1, mixers=(TEXT,)), Level(channels=192, blocks=1, mixers=(FULL, TEXT))),
        middle=(FULL, TEXT), patch=2, position_period=25.0, embedding_channels=192,
        text=WordEncoder(length=16, width=64, layers=1, pooling="attention"))


def training(**changes) -> Training:
    """The learning rate is constant and the average long, so that training can stop and go on anywhere."""
    return Training(**{"batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 500, "ema_decay": 0.9995,
                       "log_every": 100, "checkpoint_every": 250, "keep": 3, "sample_every": 0, "validate_every": 0,
                       **changes})


SAMPLING = Sampling(sampler=DDIM(eta=1.0), steps=48, guidance=1.0, batch_size=64)


def get_config() -> Experiment:
    """One stage of 1x16x16."""
    stage = Stage(name="images", video=VideoSpec(frames=1, height=16, width=16, fps=4), network=network(),
                  process=PROCESS, training=training(steps=30_000), sampling=SAMPLING)
    return Experiment(name="captioned_digits_images", stages=(stage,), data=DATA)
