"""An image prompt adapter so small that training is a matter of seconds: the U-Net of `unet.safetensors` learns to see
the vectors of `vectors` with the clips of `videos`, in latents of `autoencoder.safetensors`, all in the current
folder."""

import dataclasses

from tests.commands.tiny_control import IMAGE
from tests.commands.tiny_control import get_config as controlled
from vdm_jax.conditions.inputs import Input
from vdm_jax.networks.image_prompt import ImageProjection

UNET = dataclasses.replace(IMAGE, attention=(True,))


def get_config():
    experiment = controlled()
    stage, = experiment.stages
    network = dataclasses.replace(
        stage.network, unet=dataclasses.replace(UNET, image_prompt=True), control_nets=(),
        conditions=(Input(name="image_prompt", width=5),),
        image_projection=ImageProjection(width=5, tokens=2, token_channels=6))
    training = dataclasses.replace(stage.training, trainable=("/image_(key|value)/", "^/image_projection/"),
                                   text_dropout=0.1)
    stage = dataclasses.replace(stage, network=network, training=training)
    return dataclasses.replace(experiment, name="tiny_image_prompt", stages=(stage,),
                               data=dataclasses.replace(experiment.data, image_prompts="vectors"))
