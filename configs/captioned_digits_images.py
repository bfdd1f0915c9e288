"""Single frames of captioned digits: the image network as which a stage of captioned_digits_full begins.

Citation: images first, then video (Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section 3.2), in miniature.
Hardware: two CPU cores, half an hour and more; training goes on where it stopped.
Expected: no published result. 2,456 steps are what captioned_digits_full began as. Trained by us.
Run:      vdm-jax train captioned_digits_images
"""

from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs import captioned_digits as demo

DATA = CaptionedDigits(train_clips=40_000)  # of one and two digits


def network() -> UNet:
    """Convolutions on 8x8 patches of 2x2 pixels and on 4x4 positions below. Attention over 4x4 positions is over all
    frames, which an image has one of."""
    full, text = demo.FULL, demo.TEXT
    return UNet(
        levels=(Level(channels=96, blocks=1, mixers=(text,)), Level(channels=192, blocks=1, mixers=(full, text))),
        middle=(full, text), patch=2, position_period=25.0, embedding_channels=192, low_resolution=True,
        text=demo.words())


def source(frames: int) -> LowResolution:
    """4x4 pixels show where which colour is."""
    return LowResolution(frames=frames, height=4, width=4, augmentation=demo.spatial_1().source.augmentation)


def training(**changes) -> Training:
    """The learning rate is constant and the average long, so that training can stop and go on anywhere."""
    return Training(**{"batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 500, "ema_decay": 0.9995,
                       "log_every": 100, "checkpoint_every": 250, "keep": 3, "sample_every": 0, "validate_every": 0,
                       **changes})


SAMPLING = Sampling(sampler=DDIM(), steps=32, guidance=1.0, batch_size=64)


def get_config() -> Experiment:
    """One stage of 1x16x16."""
    stage = Stage(name="images", video=VideoSpec(frames=1, height=16, width=16, fps=4), network=network(),
                  process=demo.SHAPES_PROCESS, source=source(1), training=training(steps=8000), sampling=SAMPLING)
    return Experiment(name="captioned_digits_images", stages=(stage,), data=DATA)
