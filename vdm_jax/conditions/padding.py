"""Padding: which frames of a clip exist, where clips of different lengths are in one batch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm_jax.conditions.conditioning import Condition, Conditioning, Network, Shapes, Sizes, Stage, TrainingClips


class Padding(Condition):
    """True where a frame exists: others are seen by none and have no loss."""

    name = "padding"
    enters = "frames"
    parts = ("frame_valid",)
    frame_parts = ("frame_valid",)
    fields = ("frame_valid",)
    frame_fields = ("frame_valid",)
    made = True

    def taken(self, network: Network) -> bool:
        """Always, where the data has it; networks refuse what they cannot hide."""
        return True

    def needed(self, network: Network) -> tuple[str, ...]:
        """Nothing: without it all frames exist."""
        return ()

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """One entry a frame, where clips are padded."""
        return {"frame_valid": ((stage.shape[0],), jnp.bool_)} if sizes.padded else {}

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """One entry a frame of the data set's clips."""
        return {"frame_valid": ((sizes.clip[0],), jnp.bool_)} if sizes.padded else {}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """That of the clips; appended images exist."""
        if clips.valid is None:
            return {}
        return {"frame_valid": jnp.pad(clips.valid, ((0, 0), (0, clips.images)), constant_values=True)}

    def null(self, conditioning: Conditioning, where: Bool[Array, " B"] | None) -> dict[str, Any]:
        """All frames exist."""
        return {"frame_valid": jnp.ones_like(conditioning.frame_valid)}

    def loss_mask(self, network: Network, conditioning: Conditioning) -> Float[Array, "B T 1 1 1"] | None:
        """The frames that exist."""
        valid = conditioning.frame_valid
        return None if valid is None else valid[:, :, None, None, None].astype(jnp.float32)
