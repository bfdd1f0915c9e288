"""Control maps: what each frame should show where (edges, depth, strokes, poses), which enter as residuals of a
ControlNet (Zhang et al. 2023, arXiv 2302.05543) or, where a network says so (`Input.enters`), as channels.

`control` is given with the clips of a data set and with a request, and so are `control_1` to `control_3`, for networks
that see several maps at once. `edges` is made of the clips themselves, so that a folder of videos suffices, and in
sampling of a video that is given.

A ControlNet counts with a weight (`control_scale`), in a part of the steps (`control_start` to `control_end`, shares of
them), and in guess mode (`control_guess`): its residuals are weighted by their resolution, and only the conditional
estimate of guidance has them (Zhang et al. 2023, section 3.4, and the authors' code).
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.conditions.conditioning import Conditioning, Network, Request, Stage
from vdm_jax.conditions.inputs import InputCondition
from vdm_jax.configuration import NonNegative, Share, check_value
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import to_float
from vdm_jax.video.edges import edges

OPTIONS: dict[str, Any] = {"scale": NonNegative, "start": Share, "end": Share, "guess": bool}  # of residuals


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
        """The map and, of residuals, a factor on them, the interval of the steps that have them, and guess mode."""
        residuals = self.entry(network).way == "residuals"
        return (self.name, *(f"{self.name}_{option}" for option in OPTIONS if residuals))

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The maps that are given for each caption, and the options of their residuals. Raises `UserError` for another
        shape, number of frames or range, and options that cannot be."""
        given = request.get(self.name)
        self.check_range(stage, given)
        frames, wanted = np.shape(given)[1:2], stage.video.frames
        if frames and frames[0] % wanted:
            raise UserError(f"{self.name} of {frames[0]} frames given for stage {stage.name!r}; permitted: {wanted}, "
                            f"the frames of its videos, or {2 * wanted}, {3 * wanted}, ...", "control.frames")
        found, options = super().of_request(stage, request), self._options(request)
        if options and not found:
            raise UserError(f"{', '.join(options)} given without {self.name} for stage {stage.name!r}; permitted: "
                            "both, or none")
        return found | {"scalars": options}

    def check_range(self, stage: Stage, given: Any) -> None:
        """Raise `UserError` for floats beyond `bounds`."""
        if given is not None and np.size(given) and np.asarray(given).dtype != np.uint8:
            low, high = float(np.min(given)), float(np.max(given))
            if not self.bounds[0] <= low <= high <= self.bounds[1]:
                raise UserError(f"{self.name} in [{low:g}, {high:g}] given for stage {stage.name!r}; permitted: values "
                                f"in {list(self.bounds)}, or uint8")

    def _options(self, request: Request) -> dict[str, Array]:
        """The options that are given, each `[B]`."""
        said = {option: request.get(f"{self.name}_{option}") for option in OPTIONS}
        for option, value in said.items():
            if value is not None:
                check_value(value, OPTIONS[option], f"{self.name}_{option}")
        start, end = (usual if said[option] is None else said[option] for option, usual in (("start", 0), ("end", 1)))
        if start >= end:
            raise UserError(f"{self.name}_start={start} with {self.name}_end={end}; permitted: a start before the end, "
                            "shares of the steps")
        if said["start"] is not None or said["end"] is not None:
            said |= {"start": start, "end": end}
        if any(value is not None for value in said.values()) and said["scale"] is None:
            said["scale"] = 1.0  # which the others change
        return {f"{self.name}_{option}": jnp.full(len(request.captions), value, jnp.float32)
                for option, value in said.items() if value is not None}


class ControlMap1(ControlMap):
    """A second map."""

    name = "control_1"
    enters = "residuals"


class ControlMap2(ControlMap):
    """A third map."""

    name = "control_2"
    enters = "residuals"


class ControlMap3(ControlMap):
    """A fourth map."""

    name = "control_3"
    enters = "residuals"


MAPS = tuple(kind.name for kind in (ControlMap, ControlMap1, ControlMap2, ControlMap3))  # given ones, in their order


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


def has_interval(conditioning: Conditioning) -> bool:
    """Whether a map acts in a part of the steps only."""
    return any(name.endswith("_start") for name in conditioning.scalars)


def at_step(
    conditioning: Conditioning, logsnr: Float[Array, " B"] | Float[Array, "B T"], levels: Float[Array, " steps"]
) -> Conditioning:
    """The conditioning at a noise level of the sampler, whose steps begin at `levels`: maps outside of their interval
    have weight 0. A level belongs to the step whose level is nearest; of frames that have a level each, that of the
    first one counts."""
    if not has_interval(conditioning):
        return conditioning
    first = logsnr if logsnr.ndim == 1 else logsnr[:, 0]
    step = jnp.argmin(jnp.abs(first[:, None] - levels), axis=-1)
    found = {}
    for key, start in conditioning.scalars.items():
        if key.endswith("_start"):
            name = key.removesuffix("_start")
            end, count, rounding = conditioning.scalars[f"{name}_end"], len(levels), 1e-3
            inside = (step >= start * count - rounding) & (step + 1 <= end * count + rounding)
            found[f"{name}_scale"] = jnp.where(inside, conditioning.scalars[f"{name}_scale"], 0)
    return conditioning.adding({"scalars": found})


def of_last_steps(conditioning: Conditioning, made: int, steps: int) -> Conditioning:
    """The conditioning of a sampler of which only the last `made` of so many steps are made (SDEdit): the intervals of
    its maps, which are shares of the steps that are made, as shares of all of them."""
    def of_all(share: Array) -> Array:
        return (steps - made + share * made) / steps

    found = {key: of_all(share) for key, share in conditioning.scalars.items() if key.endswith(("_start", "_end"))}
    return conditioning.adding({"scalars": found}) if found else conditioning


def without_guessed(conditioning: Conditioning) -> Conditioning:
    """The conditioning of the unconditional estimate: maps in guess mode have weight 0 there."""
    found = {}
    for key, guess in conditioning.scalars.items():
        if key.endswith("_guess"):
            name = f"{key.removesuffix('_guess')}_scale"
            found[name] = jnp.where(guess > 0, 0, conditioning.scalars[name])
    return conditioning.adding({"scalars": found}) if found else conditioning
