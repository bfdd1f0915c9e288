"""A two-stage cascade so small that training it is a matter of seconds; a config like any other."""

from vdm_jax.attention.patterns import Temporal
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec


def stage(name, size, source, text):
    mixers = (SelfAttention(pattern=Temporal(), head_dim=4), *((CrossAttention(head_dim=4),) if text else ()))
    return Stage(
        name=name, video=VideoSpec(frames=4, height=size, width=size), source=source,
        network=UNet(levels=(Level(channels=8, blocks=1, mixers=mixers),), patch=4, embedding_channels=16, groups=2,
                     text=WordEncoder(length=12, width=8, layers=1, head_dim=4) if text else None,
                     low_resolution=source is not None),
        process=Process(prediction="x"),
        training=Training(steps=4, batch_size=8, warmup_steps=1, log_every=1, checkpoint_every=2, sample_every=0,
                          validate_every=4),
        sampling=Sampling(steps=2, batch_size=8))


def get_config():
    data = CaptionedDigits(size=16, frames=4, train_clips=16, validation_clips=8, test_clips=8)
    low = LowResolution(frames=4, height=8, width=8)
    return Experiment(name="tiny", stages=(stage("base", 8, None, True), stage("spatial", 16, low, False)), data=data)
