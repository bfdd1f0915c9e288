"""Lumiere's base with conditioning frames and masks: image to video, inpainting, outpainting, cinemagraphs.

Citation: Bar-Tal et al. 2024, arXiv 2401.12945. The input is the noisy video, the given part of a video and its mask, 7
          channels, and the base is fine-tuned with it; which tasks are trained together, how often, with which masks
          and which weights is not published: equally often here, with boxes, and all weights.
Hardware: as configs/lumiere/cascade.py, whose base this is.
Expected: image to video is judged by a user study in the paper, without numbers. Not trained by us.
Run:      vdm-jax compile lumiere/conditioned --topology v5p-512 --mesh.fsdp 4 --mesh.context 2
"""

import dataclasses

from vdm_jax.conditions.frame_masks import BoxMask, CinemagraphMask, FrameMask
from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax_configs.lumiere.cascade import CLIPS, base

TASKS = (
    FrameMask(first=1),  # image to video
    BoxMask(),  # inpainting
    BoxMask(inside=True),  # outpainting
    CinemagraphMask())  # cinemagraphs


def conditioned(stage: Stage) -> Stage:
    """A base that takes conditioning frames, all of it trained."""
    return dataclasses.replace(
        stage, network=dataclasses.replace(stage.network, conditioning_frames=True),
        training=dataclasses.replace(stage.training, masking=TASKS, trainable=(),
                                     init_from=InitFrom(stage="base", run="lumiere")))


def get_config() -> Experiment:
    """The base alone; the cascade's super-resolution takes its videos as they are."""
    return Experiment(name="lumiere_conditioned", stages=(conditioned(base()),), data=CLIPS)
