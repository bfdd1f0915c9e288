"""What a video transformer adds to its tokens, kept from step to step of a sampler.

The blocks add up to a residual, which changes little between neighbouring steps. A step that reuses the one of an
earlier step computes the first blocks alone, or none. Patches, embeddings and output are computed in every step. Which
steps reuse it is a plan that is there before sampling (`diffusion/caching.py`): nothing here depends on the tokens.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.attention import counting
from vdm_jax.networks.blocks.sinusoids import sinusoids
from vdm_jax.networks.layers import Dense, silu
from vdm_jax.networks.skips import Deep
from vdm_jax.networks.transformer.blocks import BlockInputs
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.networks.transformer.levels import level_number
from vdm_jax.networks.transformer.turns import SingleTurn, Stream, Turn
from vdm_jax.parallel.rules import shard_along


def through_blocks(
    spec: VideoTransformer, params: Any, tokens: Stream, inputs: BlockInputs, images: int, deep: Deep
) -> Float[Array, "B T H W C"]:
    """The tokens of the video after all blocks: `deep.branch` blocks are computed, and what the others add is
    `deep.features`."""
    turns, first = spec.layers // len(spec.patterns), deep.branch // len(spec.patterns)
    double = Turn(spec, images, parent=None)
    tokens = scanned(double, params["blocks"], tokens, inputs, 0, first)
    before, whole = tokens.video, []

    def rest() -> Float[Array, "B T H W C"]:
        found = scanned(double, params["blocks"], tokens, inputs, first, turns)
        if spec.single_layers:
            found = scanned(SingleTurn(spec, parent=None), params["single_blocks"], found, inputs, 0,
                            spec.single_layers // len(spec.patterns))
        whole.append(found.video)
        added = found.video.astype(jnp.float32) - before.astype(jnp.float32)
        return shard_along(added.astype(before.dtype), spec.sharded_axis)

    added = deep.features(rest)
    # Where they are computed, to the last bit what they are without a cache.
    return whole[0] if whole else shard_along(before + added, spec.sharded_axis)


def scanned(
    module: nn.Module, weights: Any, tokens: Stream, inputs: BlockInputs, first: int, last: int
) -> Stream:
    """The tokens after the turns from `first` to `last`, of weights with all turns as their first axis, none of which
    is copied."""
    if first == last:
        return tokens

    def body(tokens: Stream, turn: Int[Array, ""]) -> tuple[Stream, None]:
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, turn, keepdims=False), weights)
        return module.apply({"params": own}, tokens, inputs)

    with counting.loop(last - first):
        return jax.lax.scan(body, tokens, jnp.arange(first, last))[0]


def level_vectors(spec: VideoTransformer, params: Any, logsnr: Float[Array, " N"]) -> Float[Array, "N C"]:
    """What the network makes of noise levels for all modulations, without what else joins the vector."""
    own, dense = params["embedding"], Dense(spec.level_width or spec.width)
    number = level_number(logsnr, spec.level_encoding, spec.timesteps)
    code = sinusoids(number, spec.level_channels, order="cos_sin", endpoint=False)
    return dense.apply({"params": own["level_out"]}, silu(dense.apply({"params": own["level_in"]}, code)))
