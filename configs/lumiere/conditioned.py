"""Lumiere's base with conditioning frames and masks: image to video, inpainting, outpainting, cinemagraphs.

Citation: Bar-Tal et al. 2024, arXiv 2401.12945. The input is the noisy video, the known part of a video and its mask, 7
          channels, and the base is fine-tuned with it; which tasks are trained together, how often, with which masks
          and which weights is not published: equally often here, with boxes, and all weights.
Hardware: as configs/lumiere/cascade.py, whose base this is.
Expected: image to video is judged by a user study in the paper, without numbers. Not trained by us.
Run:      vdm-jax compile lumiere/conditioned --topology v5p-512 --mesh.fsdp 4 --mesh.context 2
"""

import dataclasses

from vdm_jax.conditions.frame_masks import BoxKnown, FramesKnown, StillKnown
from vdm_jax.stages.options import Start
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax_configs.lumiere.cascade import CLIPS, base

TASKS = (
    FramesKnown(first=1),  # image to video
    BoxKnown(),  # inpainting
    BoxKnown(inside=True),  # outpainting
    StillKnown())  # cinemagraphs


def conditioned(stage: Stage) -> Stage:
    """A base that takes what is known, all of it trained."""
    return dataclasses.replace(
        stage, network=dataclasses.replace(stage.network, observed=True),
        training=dataclasses.replace(stage.training, observations=TASKS, trainable=(),
                                     start=Start(stage="base", run="lumiere")))


def get_config() -> Experiment:
    """The base alone; the cascade's super-resolution takes its videos as they are."""
    return Experiment(name="lumiere_conditioned", stages=(conditioned(base()),), data=CLIPS)
