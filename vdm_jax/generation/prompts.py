"""What is asked of a cascade, as the conditioning that each of its stages takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vdm_jax.conditions.conditioning import Conditioning, Request, conditions_of
from vdm_jax.errors import UserError
from vdm_jax.stages.stage import Stage


def checked_request(captions: Sequence[str] | str, given: Mapping[str, Any], stages: Sequence[Stage]) -> Request:
    """What is asked of some stages; arguments that are None are left out. Raises `UserError` for no captions, and an
    argument that no stage takes."""
    given = {name: value for name, value in given.items() if value is not None}
    taken = {name for stage in stages for name in arguments_of(stage)}
    for name, value in given.items():
        if name not in taken:
            short = isinstance(value, int | float | str) or (isinstance(value, list | tuple) and len(value) <= 8)
            shown = f"={value}" if short else ""
            raise UserError(f"{name}{shown} is given and no stage takes it; permitted: "
                            f"{', '.join(sorted(taken)) or 'no further arguments'}")
    return Request((captions,) if isinstance(captions, str) else tuple(captions), given)


def arguments_of(stage: Stage) -> list[str]:
    """The arguments of a generator that a stage takes, in addition to captions."""
    return [name for condition in conditions_of(stage.network) for name in condition.arguments(stage.network)]


def of_frames(stage: Stage, request: Request, first: int, frames: int, total: int, stride: int = 1) -> Request:
    """The request for a part of videos of `total` frames, of every `stride`-th of them from `first` on: what is asked
    of each frame is cut, and its last entry held where the part goes on longer. Raises `UserError` for another number
    of frames."""
    names = {name for condition in conditions_of(stage.network) for name in condition.frame_arguments(stage.network)}
    found = dict(request.given)
    for name in names & found.keys():
        value = np.asarray(found[name])
        if value.ndim < 2 or value.shape[1] != total:
            raise UserError(f"{name} of shape {list(value.shape)} for videos of {total} frames; permitted: "
                            f"[{len(request.captions)}, {total}, ...]")
        found[name] = value[:, np.minimum(first + stride * np.arange(frames), total - 1)]
    return Request(request.captions, found)


def requested_conditioning(stage: Stage, request: Request) -> Conditioning:
    """What a stage is conditioned on, apart from what is made of its videos. Raises `UserError` for a value that it
    needs and that is missing or does not fit."""
    conditioning = Conditioning()
    for condition in conditions_of(stage.network):
        conditioning = conditioning.adding(condition.of_request(stage, request))
    return conditioning


def request_of(stage: Stage, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of a generator that ask a stage for videos like these clips of a data set."""
    found: dict[str, Any] = {}
    for condition in conditions_of(stage.network):
        found |= condition.request_of(stage.network, clips)
    return found
