"""VDM on Kinetics-600: 16 frames of 64x64, conditioned on the first 5 by reconstruction guidance.

Citation: Ho et al. 2022, arXiv 2204.03458, section 4.2. Hyperparameters are those of appendix A; what the paper leaves
          open is marked in _network.py. The number of parameters is not published.
Hardware: 256 TPU v4 chips, 220,000 steps of 256 clips.
Expected: FVD 16.2 +- .34, IS 15.64 for 5 -> 11 frames, guidance of weight 9 (table 3). Not trained by us.
Run:      vdm-jax train vdm/kinetics600     (data/kinetics600/train/*.mp4, val/*.mp4 and test/*.mp4, by the scripts of
          https://github.com/cvdfoundation/kinetics-dataset; TFDS does not have it)
"""

from vdm_jax.data.published import Kinetics600
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPMLangevin
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.stages.options import Inpainting, Sampling, StaticThreshold, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.vdm._network import network


def get_config() -> Experiment:
    """The model itself is unconditional; what is given enters when sampling. Not published: how frames are cut to
    squares, and where clips begin; here at random."""
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=64, width=64, fps=25),
        network=network(256, (1, 2, 4, 8), size=64, mlp_layers=2),
        process=Process(schedule=CosineSchedule(), prediction="v"),
        training=Training(steps=220_000, batch_size=256, learning_rate=2e-4, b1=0.9, b2=0.99, ema_decay=0.9999,
                          images_per_clip=8, random_starts=True),
        sampling=Sampling(sampler=DDPMLangevin(gamma=0.0, delta=0.1), steps=128,
                          threshold=StaticThreshold(), inpainting=Inpainting(weight=9.0)))
    return Experiment(name="vdm_kinetics600", stages=(stage,), data=Kinetics600(
        path="data/kinetics600", frames=16, height=64, width=64, labels="none"))
