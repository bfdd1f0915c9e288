"""VDM on BAIR robot pushing: 16 frames of 64x64, conditioned on the first by reconstruction guidance.

Citation: Ho et al. 2022, arXiv 2204.03458, section 4.2. Hyperparameters are those of appendix A; what the paper leaves
          open is marked in _network.py. The number of parameters is not published.
Hardware: 128 TPU v4 chips, 660,000 steps of 128 clips.
Expected: FVD 66.92 for 1 -> 15 frames with reconstruction guidance of weight 50 (table 2). Not trained by us.
Run:      vdm-jax train vdm/bair     (data/bair/softmotion30_44k, unpacked from
          http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar; prepared by TFDS: --data.via tfds
          --data.path ~/tensorflow_datasets)
"""

from vdm_jax.data.published import BAIRRobotPushing
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPMLangevin
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.stages.options import Inpainting, Sampling, StaticThreshold, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.vdm._network import network


def get_config() -> Experiment:
    """The model itself is unconditional; what is given enters when sampling. Half of the clips are mirrored. Not
    published: which 16 of a video's 30 frames are trained on, here any, and which camera."""
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=64, width=64, fps=8),
        network=network(128, (1, 2, 3, 4), size=64, blocks=3, mlp_layers=2),
        process=Process(schedule=CosineSchedule(), prediction="v"),
        training=Training(steps=660_000, batch_size=128, learning_rate=2e-4, weight_decay=0.01, b1=0.9, b2=0.999,
                          ema_decay=0.999, images_per_clip=8, flips=True, random_starts=True),
        sampling=Sampling(sampler=DDPMLangevin(gamma=0.0, delta=0.1), steps=256,
                          threshold=StaticThreshold(), inpainting=Inpainting(weight=50.0)))
    return Experiment(name="vdm_bair", stages=(stage,), data=BAIRRobotPushing(
        path="data/bair", frames=16, height=64, width=64))
