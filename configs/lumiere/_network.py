"""What the networks of Lumiere share (Bar-Tal et al. 2024, arXiv 2401.12945): image networks, and what they are given.

Published: temporal resampling next to each spatial resampling of the base; convolution-based inflation blocks at all
levels but the lowest and attention-based ones there; only what is added is trained. Not published: temporal factors (2
per level here), the sizes inside the blocks (their defaults), and the sizes of all networks.
"""

import dataclasses
from collections.abc import Sequence

from vdm_jax.attention.patterns import Temporal
from vdm_jax.networks.config import AttentionInflation, ConvolutionInflation, Level, SelfAttention, UNet

# Paths of what is added to the image network. In the trees of parameters everything else has the image network's names.
ADDED = (r"/temporal_(down|up)sample_\d+/", r"_inflation_\d+/")


def inflated(image: UNet, strides: Sequence[int], head_dim: int, **attention: str) -> UNet:
    """The video network of an image network: `strides` of time by level, and a block after each of its blocks;
    `attention` are further fields of the temporal attention."""
    context = "relayout" if image.sharded_axis == "frames" else "none"  # where clips are split over devices
    lowest = AttentionInflation(attention=SelfAttention(pattern=Temporal(), head_dim=head_dim, context=context,
                                                           **attention))
    added = [ConvolutionInflation()] * (len(image.levels) - 1) + [lowest]
    levels = tuple(with_time(level, stride, block) for level, stride, block in
                   zip(image.levels, strides, added, strict=True))
    middle = (*image.middle, lowest) if image.resample_order == "after" else ()
    return dataclasses.replace(image, levels=levels, middle=middle)


def with_time(level: Level, stride: int, block: ConvolutionInflation | AttentionInflation) -> Level:
    """A level of the image network with a temporal stride and an inflation block after its other mixers."""
    return dataclasses.replace(level, temporal_stride=stride, mixers=(*level.mixers, block))
