"""Scalars: numbers of a clip by name, such as its frame rate, which enter in the conditioning vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.conditions.conditioning import (
    Condition,
    Conditioning,
    Network,
    Request,
    SampledVideos,
    Shapes,
    Sizes,
    Stage,
)
from vdm_jax.errors import UserError

WEIGHT = "guidance"  # the scalar by which a network takes the weight of the guidance


class Scalars(Condition):
    """Frames per second ("fps"), a motion bucket ("motion"), and others that a network names. What other conditions add
    ("noise" of the first frame, "frame_noise_step" of conditioning frames) is theirs."""

    name = "scalars"
    enters = "vector"
    parts = ("scalars",)
    fields = ("frame_rate",)
    host_fields = ("fps",)
    made = True  # the stage's own, where nothing is said

    def taken(self, network: Network) -> bool:
        """Where the network names scalars."""
        return bool(network.scalars)

    def needed(self, network: Network) -> tuple[str, ...]:
        """All that it names."""
        return tuple(f"scalars/{name}" for name in network.scalars)

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """A number each."""
        return {f"scalars/{name}": ((), jnp.float32) for name in stage.network.scalars}

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """The frame rate, where rates are drawn."""
        return {} if stage.training.frame_rates is None else {"frame_rate": ((), jnp.float32)}

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The frame rate, where rates are drawn, and the stage's own numbers."""
        scalars = own_scalars(stage, len(batch["video"]))
        if stage.training.frame_rates is not None:
            scalars["fps"] = batch["frame_rate"]
        return {"scalars": scalars}

    def arguments(self, network: Network) -> tuple[str, ...]:
        """Frame rate and motion, where the network takes them."""
        return tuple(name for name in ("fps", "motion") if name in network.scalars)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The numbers that are asked for; others are the stage's own."""
        said = {name: request.get(name) for name in self.arguments(stage.network)}
        if said.get("fps") is not None and not said["fps"] > 0:
            raise UserError(f"fps={said['fps']} is not valid; permitted: a rate above 0")
        return {"scalars": {name: jnp.full(len(request.captions), value, jnp.float32) for name, value in said.items()
                            if value is not None}}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """The stage's own numbers, where nothing else was asked for."""
        return {"scalars": {**own_scalars(videos.stage, videos.shape[0]), **conditioning.scalars}}


def own_scalars(stage: Stage, count: int) -> dict[str, Array]:
    """Scalars `[B]` of `count` videos of which nothing else is said: the stage's frames per second and weight of the
    guidance, and the network's motion bucket."""
    values = {"fps": stage.video.fps, WEIGHT: stage.sampling.guidance, **stage.network.scalar_defaults}
    return {name: jnp.full((count,), values[name], jnp.float32) for name in stage.network.scalars
            if values.get(name) is not None}
