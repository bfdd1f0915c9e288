"""An image network that sees other frames: its spatial self-attention by another pattern, with the same weights."""

from __future__ import annotations

import dataclasses

from vdm_jax.attention import AttentionPattern, Spatial
from vdm_jax.errors import UserError
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.stages.stage import Stage


def with_spatial_pattern(stage: Stage, pattern: AttentionPattern) -> Stage:
    """The stage whose network has this pattern in every spatial self-attention; ControlNets next to it keep theirs.
    Raises `UserError` for a network whose self-attention is not that of an image U-Net."""
    network = stage.network
    if not isinstance(network, LatentNetwork) or not isinstance(network.unet.spatial_pattern, Spatial):
        found = network.unet.spatial_pattern if isinstance(network, LatentNetwork) else type(network).__name__
        raise UserError(f"Stage {stage.name!r}: network with {found} cannot see other frames by {pattern}; permitted: "
                        "a LatentNetwork with spatial_pattern=Spatial(), such as a released image model",
                        "patterns.with_spatial_pattern")
    unet = dataclasses.replace(network.unet, spatial_pattern=pattern)
    return dataclasses.replace(stage, network=dataclasses.replace(network, unet=unet))
