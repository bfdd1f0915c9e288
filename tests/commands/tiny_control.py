"""A ControlNet stage so small that training is a matter of seconds: it learns to follow the edges of the clips of the
folder `videos`. The weights of its U-Net, whose attention sees other frames, are `unet.safetensors`, and it works in
latents of `autoencoder.safetensors`, all in the current folder."""

from tests.training.latents import AUTOENCODER
from vdm_jax.attention.patterns import SparseCausal
from vdm_jax.conditions.inputs import Input
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.diffusion.beta_tables import ScaledLinearBetaSchedule
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.control_net import control_net_of
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

TABLE = ScaledLinearBetaSchedule()
IMAGE = LatentUNet(widths=(8,), blocks=1, attention=(False,), heads=(2,), only_cross_attention=(False,),
                   token_channels=6, groups=4, use_linear_projection=True)


def get_config():
    unet = LatentUNet(**{**IMAGE.__dict__, "spatial_pattern": SparseCausal()})
    network = LatentNetwork(unet=unet, timesteps=TABLE, conditions=(Input(name="edges", width=3),),
                            control_nets=(control_net_of(unet, hint_widths=(4, 8)),))
    stage = Stage(
        name="base", video=VideoSpec(frames=2, height=8, width=8), network=network,
        latent=Latent(autoencoder=AUTOENCODER, weights="autoencoder.safetensors"),
        process=Process(schedule=TABLE, prediction="eps", level_sampling=UniformTimestep()),
        training=Training(steps=12, batch_size=8, learning_rate=1e-2, warmup_steps=1, ema_decay=0.5, log_every=1,
                          checkpoint_every=12, sample_every=0, validate_every=0, text_dropout=0,
                          trainable=("^/control_net_",), init_from=InitFromFile(path="unet.safetensors")),
        sampling=Sampling(steps=2, batch_size=2, threshold=None))
    data = VideoFolder(path="videos", frames=2, height=8, width=8, fractions=(0.5, 0.5, 0.0), cache="cache")
    return Experiment(name="tiny_control", stages=(stage,), data=data)
