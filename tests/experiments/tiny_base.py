"""A base stage of one level, so small that training it is a matter of seconds; a config like any other."""

from vdm_jax.attention.patterns import Full
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def get_config():
    mixers = (SelfAttention(pattern=Full(), head_dim=8), CrossAttention(head_dim=8))
    network = UNet(levels=(Level(channels=8, blocks=1, kernel=1, mixers=mixers),), patch=8, stem_kernel=1, out_kernel=1,
                   embedding_channels=16, groups=2, text=WordEncoder(length=12, width=8, layers=1, head_dim=4))
    stage = Stage(name="base", video=VideoSpec(frames=4, height=16, width=16), network=network,
                  process=Process(prediction="x"), training=Training(batch_size=8, warmup_steps=1),
                  sampling=Sampling(steps=2, batch_size=8))
    data = CaptionedDigits(size=16, frames=4, train_clips=16, validation_clips=8, test_clips=8)
    return Experiment(name="tiny_base", stages=(stage,), data=data)
