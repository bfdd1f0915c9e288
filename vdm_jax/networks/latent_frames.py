"""Temporal layers that follow those within frames, in open latent video models: a stack of convolutions and a
transformer.

ModelScope (Wang et al. 2023, arXiv 2308.06571) and Make-Your-Video (Xing et al. 2023, arXiv 2306.00943) have both,
AnimateDiff (Guo et al. 2023, arXiv 2307.04725) has the transformer alone, with a code of the frame's number, as a
motion module that joins any image network of its sizes. Both end in a projection that starts at zero: a network then
begins as its image network, frame by frame.
"""

from __future__ import annotations

from vdm_jax.configuration import Count, ShareBelowOne, Size, SizeOrZero, config
from vdm_jax.networks.blocks.temporal import TemporalConvolutions, TemporalTransformer
from vdm_jax.networks.latent_unet_blocks import Sizes

FIRST_HEADS = 8  # of ModelScope's transformer after the first convolution, whose heads are those of the first level


@config
class TemporalConv:
    """ModelScope: four temporal convolutions after each residual block, two temporal self-attentions after each
    transformer, and such a transformer after the first convolution. The options are those of Make-Your-Video."""

    dropout: ShareBelowOne = 0.1  # probability, in training, before all but the first of the convolutions
    # Five convolutions, the second over the pixels of a frame, and frames beyond the ends are the first and last one
    spatial: bool = False
    stem: bool = True  # the transformer after the first convolution
    # Furthest offset that the attentions distinguish, by learned vectors on keys and values; 0: none
    max_relative_position: SizeOrZero = 0

    @property
    def layers(self) -> int:
        """Convolutions after each residual block."""
        return 5 if self.spatial else 4


@config
class Motion:
    """AnimateDiff: a motion module after each block of every level, whether it has a transformer or not."""

    heads: Size = 8
    frames: Size = 32  # of the longest clip; 24 in the first version
    middle: bool = True  # one in the middle too, in the second version only
    groups: Count = 32  # of its norms
    attentions: Count = 2  # temporal self-attentions; 1 in SparseCtrl


MOTION_V1 = Motion(frames=24, middle=False)
MOTION_V2 = Motion()
MOTION_V3 = Motion(middle=False)


def frame_convolutions(temporal_conv: TemporalConv, sizes: Sizes, name: str | None = None) -> TemporalConvolutions:
    """Norm over the clip, SiLU and convolution over three frames, or once over pixels, several times."""
    return TemporalConvolutions(
        temporal_conv.layers, spatial=temporal_conv.spatial, replicate=temporal_conv.spatial,
        dropout=temporal_conv.dropout, groups=sizes.groups, dtype=sizes.dtype, sharded_axis=sizes.sharded_axis,
        name=name)


def motion_module(motion: Motion, sizes: Sizes, channels: int, name: str | None = None) -> TemporalTransformer:
    """The motion module of a level with this many channels."""
    return TemporalTransformer(
        motion.heads, channels // motion.heads, motion.groups, sizes.temporal_pattern, code=True,
        attentions=motion.attentions, kernel=sizes.kernel, context=sizes.context, dtype=sizes.dtype,
        sharded_axis=sizes.sharded_axis, name=name)
