"""A cascade that predicts 10 frames of Stochastic Moving MNIST from 5, so small that it is measured in seconds."""

from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.data.smmnist import StochasticMovingMNIST
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec


def stage(name, size, source):
    larger = source is not None
    return Stage(
        name=name, video=VideoSpec(frames=15, height=size, width=size), source=source,
        network=UNet(levels=(Level(channels=4, blocks=1, kernel=1),), patch=8, temporal_patch=5, embedding_channels=8,
                     groups=2, conditioning_frames=True, low_resolution=larger, residual=larger),
        process=Process(prediction="x"),
        training=Training(steps=2, batch_size=8, masking=(FrameMask(first=5), NoMask()), text_dropout=0.0),
        sampling=Sampling(steps=1, batch_size=8))


def get_config():
    low = LowResolution(frames=15, height=16, width=16)
    return Experiment(name="tiny_smmnist", stages=(stage("base", 16, None), stage("spatial", 64, low)),
                      data=StochasticMovingMNIST())
