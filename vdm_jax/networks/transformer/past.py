"""Keys and values of frames that are finished, to which the next block attends: a ring with sinks.

Keys are kept with their positions in them, which are those in the whole video. Of `BlockCausal(window, sink)` the ring
holds the first `sink` frames for good and of the others as many as the window shows in addition to a block's own;
without a window it holds all.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdm_jax.attention import BlockCausal
from vdm_jax.networks.blocks.attention import KEPT
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.rules import shard_along


@flax.struct.dataclass
class Past:
    """What is kept of frames (of tokens), and which block comes next."""

    # By block of a turn (`blocks.Turn`): keys and values, with the turns of the scan in front
    kept: dict[str, tuple[Float[Array, "L B F N K D"], Float[Array, "L B F N K D"]]]
    numbers: Int[Array, " F"]  # of the frames that are kept; -1: none yet
    start: Int[Array, ""]  # number of the first frame of the next block
    total: int = flax.struct.field(pytree_node=False)  # frames of the whole video


def pattern_of(spec: VideoTransformer) -> BlockCausal:
    """The pattern of the blocks that look across frames."""
    return next(pattern for pattern in spec.patterns if isinstance(pattern, BlockCausal))


def empty(spec: VideoTransformer, batch: int, shape: tuple[int, int, int]) -> Past:
    """Before the first block of a video of `shape`: frames, height and width of what the network denoises."""
    total, *sides = (size // patch for size, patch in zip(shape, spec.patch, strict=True))
    pattern, turns = pattern_of(spec), spec.layers // len(spec.patterns)
    slots = max(total - pattern.block, 0)
    if pattern.window is not None:
        slots = min(slots, pattern.sink + pattern.window - pattern.block)
    size = (turns, batch, slots, int(np.prod(sides)), spec.heads, spec.head_dim)

    def zeros() -> Array:
        return shard_along(jnp.zeros(size, jnp.dtype(spec.dtype)), "heads", dim=4, must=False)

    kept = {f"block_{place}": (zeros(), zeros()) for place, pattern in enumerate(spec.patterns)
            if isinstance(pattern, BlockCausal)}
    return Past(kept, jnp.full(slots, -1, jnp.int32), jnp.int32(0), total)


def following(spec: VideoTransformer, past: Past, state: Any) -> Past:
    """After a block, by what a call with `mutable=["kept"]` has left."""
    pattern, slots = pattern_of(spec), past.numbers.shape[0]
    block = pattern.block
    if not slots:  # one block is all
        return past.replace(start=past.start + block)
    ring = max(slots - pattern.sink, 1) if pattern.window is not None else slots
    slot = past.start
    if pattern.window is not None:  # sinks stay where they are, the others go round
        slot = jnp.where(past.start < pattern.sink, past.start, pattern.sink + (past.start - pattern.sink) % ring)
    fits = slot + block <= slots  # of a video without a window, the last block is seen by none

    def written(old: Array, new: Array, axis: int) -> Array:
        updated = jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=axis)
        return jnp.where(fits, updated, old)

    kept = {}
    for name, pair in past.kept.items():
        found, = state["kept"]["blocks"][name]["self_attention"][KEPT]
        new = (a.reshape(*a.shape[:3], -1, *a.shape[5:]) for a in found)  # [L, B, block, H, W, K, D]
        kept[name] = tuple(written(old, part, 2) for old, part in zip(pair, new, strict=True))
    numbers = written(past.numbers, past.start + jnp.arange(block, dtype=jnp.int32), 0)
    return past.replace(kept=kept, numbers=numbers, start=past.start + block)


def past_numbers(past: Past | None, frames: int) -> Int[Array, " T"] | None:
    """Numbers of the frames of the next block in the video."""
    return None if past is None else past.start + jnp.arange(frames, dtype=jnp.int32)
