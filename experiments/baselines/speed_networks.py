"""The two U-Nets that are timed against each other, and the operations of ours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.planning.flops import count

FRAMES, CHANNELS = 10, 3
THEIRS = {"dim": 64, "dim_mults": (1, 2, 4, 8), "channels": CHANNELS}  # of Unet3D in video-diffusion-pytorch
THEIR_PARAMETERS = 35_706_259


def our_network() -> UNet:
    """Factorised space-time U-Net in the manner of VDM (Ho et al. 2022, 2204.03458), as large as theirs.

    1x3x3 convolutions, temporal attention with relative positions at every level, full spatial attention at the two
    lowest resolutions and in the middle. Ours joins every skip in a residual block of its own and attends with all
    channels, so with a last level of 512 channels it would be larger; with 384 and a wider conditioning vector it has
    as many parameters as theirs, and as many operations per forward pass (both are recorded).
    """
    temporal = SelfAttention(pattern=Temporal(), position="relative")
    spatial = SelfAttention(pattern=Spatial())
    mixers = ((temporal,), (temporal,), (spatial, temporal), (spatial, temporal))
    levels = tuple(Level(channels=channels, blocks=1, mixers=m)
                   for channels, m in zip((64, 128, 256, 384), mixers, strict=True))
    return UNet(levels=levels, middle=(spatial, temporal), embedding_channels=512)


def abstract_inputs(batch: int, size: int) -> tuple[Any, Any, Any]:
    """Shapes of parameters, video and noise level; nothing is allocated."""
    video = jax.ShapeDtypeStruct((batch, FRAMES, size, size, CHANNELS), jnp.float32)
    logsnr = jax.ShapeDtypeStruct((batch,), jnp.float32)
    variables = jax.eval_shape(SpaceTimeUNet(our_network()).init, jax.random.key(0), video, logsnr)
    return variables["params"], video, logsnr


def forward_operations(batch: int, size: int) -> int:
    """Floating-point operations of our forward pass in convolutions and matrix products, counted in the jaxpr."""
    params, video, logsnr = abstract_inputs(batch, size)
    network = SpaceTimeUNet(our_network())
    closed = jax.make_jaxpr(lambda p, z, level: network.apply({"params": p}, z, level))(params, video, logsnr)
    return sum(count(closed.jaxpr))
