"""What every network of a stage offers: the protocol between networks and the rest of the package.

Stages, conditions, generation, training and planning read these members, and those of `Conditioned`, and no others, so
that a further network touches its own file and `kinds.py`. A config inherits `Backbone`, which says what is absent by
default, and its module is called as

    module(z, logsnr, conditioning, *, train=False, images=0) -> prediction

with noisy videos or latents `[B, T, H, W, C]`, their log-SNR `[B]`, or `[B, T]` where frames have a level each, and a
`Conditioning`. `images` is the number of frames at the end that are independent images (joint training).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

from vdm_jax.conditions.conditioned import Conditioned


@runtime_checkable
class Backbone(Conditioned, Protocol):
    """What a network's config says of what it computes; `Conditioned` has what it says of its conditions."""

    out_channels: int  # of the video, or of its latents, which it takes and predicts
    reduction: tuple[int, int]  # what height and width must be multiples of
    frame_reduction: int = 1  # what the number of frames must be a multiple of
    dtype: str  # of the computation; parameters stay float32
    remat: str = "none"  # what the backward pass recomputes; `remat.py`
    block_frames: int | None = None  # of a block that sees no later ones, which it can make with keys that are kept
    # Whether temporal attention sees a window of frames, so that it makes clips of more frames than it is trained on
    extrapolates: bool = False
    # Skip connections, from the outermost on, or blocks one after the other (`skips_are`): its module takes `deep`,
    # where the features inside one, or what the blocks from one on add, come from
    skips: int = 0
    skips_are: ClassVar[str] = "skip connections"
    # Whether its module has `precompute(conditioning)`, which makes once per video what depends on no noise
    precomputes: bool = False
    # Whether its module has `auxiliary_loss(conditioning, train=False) -> [B]`, which is added to the loss of the noise
    auxiliary: bool = False
    remat_field: ClassVar[str] = "remat"  # the field of the config that says so

    def check_stage(self, stage: Any) -> None:
        """Raise `UserError` for a stage that asks of it what it cannot do."""

    def attended(self, frames: int, height: int, width: int) -> Iterator[int]:
        """Tokens of the sequences over which its layers attend, but for those of one position over frames."""
        return iter(())

    def rematerialised(self, remat: str) -> Backbone:
        """The same with another rematerialisation."""
        return dataclasses.replace(self, remat=remat)
