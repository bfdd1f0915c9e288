"""A folder of your own videos with captions: the stages of `my_videos`, the first of which reads the caption.

Citation: as my_videos; guidance without a classifier (Ho & Salimans 2022, arXiv 2207.12598).
Hardware: one GPU.
Expected: as my_videos; the first stage has 45.3 M parameters, 2.27 TFLOP per step and 6.7 GiB;
          quality not measured. Not trained by us.
Run:      vdm-jax prepare ~/videos --out data/my_videos --fps 8 --captions ~/videos/captions.csv
          vdm-jax train my_captioned_videos
"""

import dataclasses

from vdm_jax.networks.config import CrossAttention, WordEncoder
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs import my_videos


def get_config() -> Experiment:
    """The words of the captions become the vocabulary when the run is made."""
    experiment = my_videos.get_config()
    base, spatial = experiment.stages
    first, *rest = base.network.levels
    text = CrossAttention()
    levels = (first, *(dataclasses.replace(level, mixers=(*level.mixers, text)) for level in rest))
    network = dataclasses.replace(base.network, levels=levels, middle=(*base.network.middle, text),
                                  text=WordEncoder(length=24, width=256, layers=2))
    base = dataclasses.replace(base, network=network, sampling=dataclasses.replace(base.sampling, guidance=2.0))
    return dataclasses.replace(experiment, name="my_captioned_videos", stages=(base, spatial))
