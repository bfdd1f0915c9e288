"""The bodies of the scans over the blocks of a video transformer."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from vdm_jax.attention import BlockCausal, TeacherForcing, counting
from vdm_jax.networks.remat import name_input
from vdm_jax.networks.transformer.blocks import Block, BlockInputs
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.networks.transformer.joint import JointBlock, SingleBlock


class Stream(NamedTuple):
    """The tokens that go through the blocks."""

    video: Float[Array, "B T H W C"]
    text: Float[Array, "B 1 L C"] | None = None  # where it is part of the sequence


class Turn(nn.Module):
    """As many blocks as there are patterns, one of each: the body of the scan over all blocks."""

    config: VideoTransformer
    images: int = 0
    forced: int = 0  # frames of a clean clip that stands before its noisy copy

    @nn.compact
    def __call__(
        self, tokens: Stream, inputs: BlockInputs, past: dict[str, tuple[Array, Array]] | None = None
    ) -> tuple[Stream, None]:
        counting.first_layer()
        x, text = (part if part is None else name_input(part, self.config.remat) for part in tokens)
        for place, pattern in enumerate(self.config.patterns):
            if self.forced and isinstance(pattern, BlockCausal):
                pattern = TeacherForcing(frames=self.forced, block=pattern.block, window=pattern.window,
                                         sink=pattern.sink)
            name = f"block_{place}"
            if text is None:
                before = None if past is None else past.get(name)
                x = Block(self.config, pattern, self.images, name=name)(x, inputs, before)
            else:
                x, text = JointBlock(self.config, pattern, name=name)(x, text, inputs)
        return Stream(x, text), None


class SingleTurn(nn.Module):
    """As many blocks in which video and text are alike as there are patterns: the body of the scan over these."""

    config: VideoTransformer

    @nn.compact
    def __call__(self, tokens: Stream, inputs: BlockInputs) -> tuple[Stream, None]:
        counting.first_layer()
        x, text = (name_input(part, self.config.remat) for part in tokens)
        for place, pattern in enumerate(self.config.patterns):
            x, text = SingleBlock(self.config, pattern, name=f"single_{place}")(x, text, inputs)
        return Stream(x, text), None
