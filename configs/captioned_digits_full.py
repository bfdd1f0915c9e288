"""The demo's cascade larger and trained for longer, on captions of one and two digits.

Citation: Imagen Video (Ho et al. 2022, arXiv 2210.02303) in miniature, as configs/captioned_digits.py.
Hardware: two CPU cores over a night; training goes on where it stopped.
Expected: aims at a whole-caption score of 0.9 on captions of one digit and 0.75 on all. Not trained by us.
Run:      vdm-jax train captioned_digits_full
"""

import dataclasses

from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.stages.options import Evaluation
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax_configs import captioned_digits as demo


def base() -> Stage:
    """8 frames of 16x16 from a caption. The learning rate is constant and the average long, so that training can stop
    and go on anywhere."""
    stage = demo.base()
    first, last = stage.network.levels
    network = dataclasses.replace(stage.network, levels=(
        dataclasses.replace(first, channels=96), dataclasses.replace(last, channels=192)), embedding_channels=192)
    training = dataclasses.replace(
        stage.training, steps=100_000, batch_size=32, learning_rate=1e-3, warmup_steps=500, decay=False,
        ema_decay=0.9995, log_every=100, checkpoint_every=500, keep=3, evaluation=Evaluation(every=5000, clips=64))
    return dataclasses.replace(stage, network=network, training=training)


def spatial() -> Stage:
    """16 frames of 64x64 from 8 of 16x16."""
    stage = demo.spatial()
    level = dataclasses.replace(stage.network.levels[0], channels=96)
    training = dataclasses.replace(stage.training, steps=5000, batch_size=8, learning_rate=1e-3, warmup_steps=200,
                                   decay=False, ema_decay=0.999, checkpoint_every=250)
    return dataclasses.replace(stage, network=dataclasses.replace(stage.network, levels=(level,)), training=training)


def get_config() -> Experiment:
    """The two stages on 100,000 clips of one and two digits."""
    return Experiment(name="captioned_digits_full", stages=(base(), spatial()),
                      data=CaptionedDigits(train_clips=100_000))
