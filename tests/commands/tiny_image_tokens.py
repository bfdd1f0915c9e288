"""A video transformer that goes on from a picture, of which it reads what an image encoder makes, so small that
training is a matter of seconds: with the prepared clips of `clips` and the tokens of `tokens`, in the current
folder."""

from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.text import WordEncoder
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


def get_config():
    network = VideoTransformer(
        out_channels=3, patch=(1, 4, 4), width=16, heads=2, hidden=16, layers=1, frame_conditioning="channels",
        text=WordEncoder(length=4, width=8, layers=1, head_dim=4),
        conditions=(Input(name="image_tokens", width=8),))
    stage = Stage(
        name="base", video=VideoSpec(frames=3, height=8, width=8), network=network, process=Process(prediction="x"),
        training=Training(steps=3, batch_size=8, learning_rate=1e-2, warmup_steps=1, ema_decay=0.5, log_every=1,
                          checkpoint_every=3, sample_every=0, validate_every=0, masking=(FrameMask(first=1),)),
        sampling=Sampling(steps=2, batch_size=2))
    return Experiment(name="tiny_image_tokens", stages=(stage,),
                      data=PreparedClips(path="clips", image_tokens="tokens"))
