"""Class labels: one number per clip, which enters in the conditioning vector; -1 is the null class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from vdm_jax.conditions.conditioning import Condition, Conditioning, Network, Request, Shapes, Sizes, Stage, nulled
from vdm_jax.errors import UserError


class Label(Condition):
    """The class of a clip."""

    name = "label"
    enters = "vector"
    parts = ("labels",)
    fields = ("label",)
    guidance = "prompt"

    def taken(self, network: Network) -> bool:
        """Where the network has classes."""
        return network.classes > 0

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """A number."""
        return {"labels": ((), jnp.int32)}

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """A number."""
        return {"label": ((), jnp.int32)}

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The label of each clip."""
        if "label" not in batch:
            raise UserError(f"stage {stage.name!r} takes a class, but the batch has no label")
        return {"labels": batch["label"]}

    def arguments(self, network: Network) -> tuple[str, ...]:
        """Labels, one per caption."""
        return ("labels",)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The labels asked for."""
        labels, count, classes = request.get("labels"), len(request.captions), stage.network.classes
        if labels is None or len(labels) != count or not all(-1 <= label < classes for label in labels):
            raise UserError(f"labels={labels} given for stage {stage.name!r}; permitted: {count} numbers from -1 "
                            f"(no class) to {classes - 1}")
        return {"labels": jnp.asarray(labels, jnp.int32)}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The classes of the clips."""
        return {"labels": [int(clip["label"]) for clip in clips]} if "label" in clips[0] else {}

    def null(self, conditioning: Conditioning, where: Bool[Array, " B"] | None) -> dict[str, Any]:
        """The null class."""
        return {"labels": nulled(conditioning.labels, -1, where)}
