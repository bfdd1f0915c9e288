"""Imagen's 64x64 to 256x256 stage with a fifth level, by which it has the 600 M parameters that the paper states.

Citation: Saharia et al. 2022, arXiv 2205.11487; the levels are those of NVIDIA's JAX-Toolbox (rosetta/projects/imagen),
          whose process (EDM) and resampling are others. The rest is imagen/cascade.py.
Hardware: 128 TPU v4 in the paper.
Expected: with a 500 M base and guidance 3, FID 10.23 on COCO, 30k prompts (the toolbox's own figure, of its own
          training). Not trained by us.
Run:      vdm-jax train imagen/sr_256_600m
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.imagen._network import sr_256_five_blocks
from vdm_jax_configs.imagen.cascade import enlarged


def get_config() -> Experiment:
    """The stage alone, from real low-resolution images."""
    stage = enlarged("sr_256", 256, sr_256_five_blocks(), Process(schedule=CosineSchedule(), prediction="eps"))
    return Experiment(name="imagen_sr_256_600m", stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/images"), path="data/t5_xxl", length=128))
