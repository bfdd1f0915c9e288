"""VDM on UCF101, unconditional: 16 frames of 64x64.

Citation: Ho et al. 2022, arXiv 2204.03458, section 4.1. Hyperparameters are those of appendix A; what the paper leaves
          open is marked in _network.py. The number of parameters is not published.
Hardware: 128 TPU v4 chips, 60,000 steps of 128 clips.
Expected: C3D FID 295 +- 3 and IS 57 +- .62 of 10,000 samples (table 1). Not trained by us.
Run:      vdm-jax train vdm/ucf101     (data/ucf101/UCF-101/*/*.avi and data/ucf101/ucfTrainTestlist/*.txt, from
          https://www.crcv.ucf.edu/data/UCF101.php; prepared by TFDS: --data.via tfds --data.path ~/tensorflow_datasets)
"""

from vdm_jax.data.published import UCF101
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.stages.options import Sampling, StaticThreshold, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.vdm._network import network


def get_config() -> Experiment:
    """All 13,320 videos, at their own frame rate. Not published: how frames are cut to squares, and where clips begin;
    here at random."""
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=64, width=64, fps=25),
        network=network(256, (1, 2, 4, 8), size=64),
        process=Process(schedule=CosineSchedule(), prediction="eps"),
        training=Training(steps=60_000, batch_size=128, learning_rate=3e-4, b1=0.9, b2=0.99, ema_decay=0.9999,
                          images_per_clip=8, random_starts=True),
        sampling=Sampling(sampler=DDPM(gamma=0.1), steps=256,
                          threshold=StaticThreshold()))
    return Experiment(name="vdm_ucf101", stages=(stage,), data=UCF101(
        path="data/ucf101", frames=16, height=64, width=64, splits=("train+test", "test", "test")))
