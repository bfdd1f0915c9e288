"""The demo's data, of one and two digits, at the quality that larger networks reach in hours.

Citation: images first, then video (Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section 3.2), in miniature.
Hardware: two CPU cores over a night; training goes on where it stopped.
Expected: aims at a whole-caption score of 0.9 on captions of one digit and 0.75 on all; docs/results.md has the scores
          of the weights that come with the package, after a part of these steps. Trained by us.
Run:      vdm-jax train captioned_digits_images
          vdm-jax train captioned_digits_full
"""

import dataclasses

from vdm_jax.stages.options import Evaluation, InitFrom
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs import captioned_digits as demo
from vdm_jax_configs import captioned_digits_images as images


def base() -> Stage:
    """8 frames of 4x4 from a caption, by more blocks than the demo's."""
    stage = demo.base()
    level = dataclasses.replace(stage.network.levels[0], blocks=2)
    return dataclasses.replace(stage, network=dataclasses.replace(stage.network, levels=(level,)),
                               training=images.training(steps=20_000, batch_size=64, warmup_steps=200))


def spatial_1() -> Stage:
    """8 frames of 16x16 by the image network, whose attention over 4x4 positions now is over all frames."""
    training = images.training(
        steps=20_000, batch_size=8, warmup_steps=200, evaluation=Evaluation(every=2000, clips=64),
        init_from=InitFrom(stage="images", run="captioned_digits_images"))
    return Stage(name="spatial_1", video=VideoSpec(frames=8, height=16, width=16, fps=4), network=images.network(),
                 process=demo.SHAPES_PROCESS, source=images.source(8), training=training, sampling=images.SAMPLING)


def spatial_2() -> Stage:
    """16 frames of 64x64 from 8 of 16x16."""
    stage = demo.spatial_2()
    level = dataclasses.replace(stage.network.levels[0], channels=96)
    return dataclasses.replace(
        stage, network=dataclasses.replace(stage.network, levels=(level,)),
        training=images.training(steps=5000, batch_size=8, warmup_steps=200, ema_decay=0.999))


def get_config() -> Experiment:
    """The three stages, on the data of the image network."""
    return Experiment(name="captioned_digits_full", stages=(base(), spatial_1(), spatial_2()), data=images.DATA)
