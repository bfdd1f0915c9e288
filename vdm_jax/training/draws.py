"""What a training step draws, and the network of a stage on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from vdm_jax.conditions.conditioning import Conditioning, conditions_of, drop_named, drop_text
from vdm_jax.diffusion.arrays import Level, Network
from vdm_jax.networks import kinds
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.stage import Stage

Batch = dict[str, Array]


class Drawn(NamedTuple):
    """Everything about a batch that does not depend on the network, with all that a step draws except the network's
    dropout."""

    x: Float[Array, "B T H W C"]  # target videos or latents: windows, parts and samples of moments are drawn
    conditioning: Conditioning  # augmentation level and noise, frame mask, noise of the first frame; text dropped
    images: int  # appended to each clip
    logsnr: Level  # training level of each example, or of each of its frames
    noise: Float[Array, "B T H W C"]
    dropout_key: PRNGKeyArray  # of the network's dropout layers


def draw(
    stage: Stage, batch: Batch, key: PRNGKeyArray, autoencoder: Any = None, *, train: bool = True
) -> Drawn:
    """The draws of one step, each from a key of its own: no two of them are correlated, within a batch or over
    steps."""
    input_key, text_key, loss_key, dropout_key = jax.random.split(key, 4)
    x, conditioning, images = training_inputs(stage, batch, input_key, autoencoder)
    if train:
        conditioning = drop_text(text_key, conditioning, stage.training.text_dropout)
        conditioning = drop_named(jax.random.fold_in(text_key, 1), conditioning,
                                  [(entry.names, entry.probability) for entry in stage.training.dropout])
    return Drawn(x, conditioning, images, *stage.process.draw(loss_key, x.shape), dropout_key)


def bound_network(
    stage: Stage, params: Any, drawn: Drawn, *, train: bool, network: kinds.Network | None = None
) -> Network:
    """`(z, log-SNR) -> output` of the stage's network, or of `network` where that is given, with the conditioning that
    was drawn; `train` with dropout."""
    module = kinds.network_module(network or stage.network)

    def bound(z: Array, logsnr: Array) -> Array:
        return module.apply({"params": params}, z, logsnr, drawn.conditioning, train=train, images=drawn.images,
                            rngs={"dropout": drawn.dropout_key})

    return bound


def auxiliary_loss(stage: Stage, params: Any, drawn: Drawn, *, train: bool) -> Float[Array, " B"]:
    """What a network that has a loss of its own adds to that of the noise."""
    return kinds.network_module(stage.network).apply(
        {"params": params}, drawn.conditioning, train=train, method="auxiliary_loss",
        rngs={"dropout": drawn.dropout_key})


def loss_mask(stage: Stage, conditioning: Conditioning) -> Float[Array, "B T ..."] | None:
    """1 where the loss counts, for all conditions of the stage; None: everywhere."""
    mask = None
    for condition in conditions_of(stage.network):
        if (part := condition.loss_mask(stage.network, conditioning)) is not None:
            mask = part if mask is None else mask * part
    return mask
