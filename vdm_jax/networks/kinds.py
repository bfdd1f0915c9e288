"""The kinds of networks that a stage may have. A further one is a `Backbone`, its module, and a line here."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from vdm_jax.errors import unknown_kind
from vdm_jax.networks.backbone import Backbone
from vdm_jax.networks.config import UNet
from vdm_jax.networks.flow_predictor import FlowPredictor, FlowPredictorModule
from vdm_jax.networks.latent_network import LatentNetwork, LatentNetworkModule
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.networks.transformer.network import Experts, VideoTransformerModule
from vdm_jax.networks.unet import SpaceTimeUNet

Network = UNet | LatentNetwork | VideoTransformer | FlowPredictor
MODULES: dict[type[Backbone], Callable[..., nn.Module]] = {
    UNet: SpaceTimeUNet, LatentNetwork: LatentNetworkModule, VideoTransformer: VideoTransformerModule,
    FlowPredictor: FlowPredictorModule}


def network_module(network: Backbone) -> nn.Module:
    """The network of a stage; see `Backbone` for how it is called. Raises `UserError` for an unknown kind."""
    if type(network) not in MODULES:
        raise unknown_kind("a network", network, tuple(MODULES))
    if isinstance(network, VideoTransformer) and network.boundary is not None:
        return Experts(network)
    return MODULES[type(network)](network)
