"""Tune-A-Video so small that tuning is a matter of seconds: one video of the folder `videos`, the image U-Net of
`unet.safetensors`, latents of `autoencoder.safetensors`, all in the current folder."""

import dataclasses

from tests.training.latents import AUTOENCODER
from vdm_jax.attention.patterns import SparseCausal
from vdm_jax.commands.configs import load_config
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile
from vdm_jax.stages.stage import Experiment, VideoSpec

IMAGE = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,),
                   token_channels=6, groups=4)


def get_config():
    stage, = load_config("tune_a_video/one_shot").stages
    unet = dataclasses.replace(IMAGE, temporal_attention=True, norm_over="residual",
                               spatial_pattern=SparseCausal(first=True, previous=True, own=False))
    stage = dataclasses.replace(
        stage, video=VideoSpec(frames=4, height=8, width=8), network=LatentNetwork(unet=unet),
        latent=Latent(autoencoder=AUTOENCODER, weights="autoencoder.safetensors"),
        training=dataclasses.replace(stage.training, steps=6, learning_rate=1e-2, log_every=1, checkpoint_every=6,
                                     init_from=InitFromFile(path="unet.safetensors")),
        sampling=dataclasses.replace(stage.sampling, steps=3, guidance=0.0))
    data = VideoFolder(path="videos", frames=4, height=8, width=8, clips="one", fractions=(1.0, 0.0, 0.0),
                       cache="cache")
    return Experiment(name="tiny_tune", stages=(stage,), data=data, validation_split="train",
                      mesh=MeshSpec(data=1, tensor=-1))  # a batch of one
