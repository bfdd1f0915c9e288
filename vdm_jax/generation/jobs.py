"""The videos asked for in one call of a generator, and the random keys of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from vdm_jax.generation.compiled import DRAWN, Noise, Watch
from vdm_jax.generation.one_stage import sample_keys

Progress = Callable[[str, int, int], None]  # stage name, videos done, videos in all


@dataclasses.dataclass(frozen=True)
class Jobs:
    """The videos asked for in one call."""

    seed: int
    indices: Int[np.ndarray, " B"]  # one per video
    progress: Progress | None = None
    blocks: Int[np.ndarray, " B"] | None = None  # of long videos, the number of each one's segment
    noise: Noise = DRAWN  # of the first stage
    watch: Watch | None = None  # of the first stage's steps

    def keys(self, rows: Int[np.ndarray, " N"], place: int) -> Key[Array, " N"]:
        """Keys of some of the videos for the stage at a place of the cascade; a long video's first segment has those of
        a video."""
        keys = sample_keys(self.seed, jnp.asarray(self.indices[rows]), place)
        if self.blocks is None:
            return keys
        blocks = jnp.asarray(self.blocks[rows])
        return jnp.where(blocks > 0, jax.vmap(jax.random.fold_in)(keys, blocks), keys)

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report progress to whoever asked for it."""
        if self.progress is not None:
            self.progress(stage, done, total)
