"""Control maps: what each frame should show where (edges, depth, strokes, poses), which enter as residuals of a
ControlNet (Zhang et al. 2023, arXiv 2302.05543) or, where a network says so (`Input.enters`), as channels.

`control` is given with the clips of a data set and with a request. `edges` is made of the clips themselves, so that a
folder of videos suffices, and in sampling of a video that is given.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vdm_jax.conditions.conditioning import Network, Request, Stage
from vdm_jax.conditions.inputs import InputCondition
from vdm_jax.configuration import NonNegative, check_value
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import to_float
from vdm_jax.video.edges import edges


class ControlMap(InputCondition):
    """A map per frame, uint8 or in [0, 1]. Where it is left out it is black. Guidance leaves it in both estimates."""

    name = "control"
    enters = "residuals"
    host_fields = ("control_kind",)  # what `vdm-jax annotate` made
    dtype = jnp.uint8
    bounds: ClassVar[tuple[float, float]] = (0, 1)  # of what is given as floats

    def value(self, stage: Stage, given: Array) -> Array:
        """In [0, 1]."""
        given = jnp.asarray(given)
        return super().value(stage, given / 255 if given.dtype == jnp.uint8 else given)

    def arguments(self, network: Network) -> tuple[str, ...]:
        """The map and, of residuals, a factor on them."""
        scaled = self.entry(network).way == "residuals"
        return (self.name, f"{self.name}_scale") if scaled else (self.name,)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The maps that are given for each caption, and the factor. Raises `UserError` for another shape or range."""
        given, scale = request.get(self.name), request.get(f"{self.name}_scale")
        if given is not None and np.size(given) and np.asarray(given).dtype != np.uint8:
            low, high = float(np.min(given)), float(np.max(given))
            if not self.bounds[0] <= low <= high <= self.bounds[1]:
                raise UserError(f"{self.name} in [{low:g}, {high:g}] given for stage {stage.name!r}; permitted: values "
                                f"in {list(self.bounds)}, or uint8")
        found = super().of_request(stage, request)
        if scale is None:
            return found
        check_value(scale, NonNegative, f"{self.name}_scale")
        return found | {"scalars": {f"{self.name}_scale": jnp.full(len(request.captions), scale, jnp.float32)}}


class Edges(ControlMap):
    """The edges of a video, in every channel of the map: of the clips in training, in sampling of a given video
    [B, frames, height, width, 3], uint8 or in [-1, 1]."""

    name = "edges"
    enters = "residuals"
    host_fields = ()
    of_video = True
    bounds = (-1, 1)

    def value(self, stage: Stage, given: Array) -> Array:
        """In [0, 1], of the video in the size of the stage's."""
        given = jnp.asarray(given)
        video = InputCondition.value(self, stage, to_float(given) if given.dtype == jnp.uint8 else given)
        return jnp.repeat(edges(video), self.entry(stage.network).width, axis=-1)
