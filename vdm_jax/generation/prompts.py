"""What is asked of a cascade, as the conditioning that each of its stages takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vdm_jax.conditions.conditioning import Conditioning, Request, conditions_of
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.conditions.image_tokens import IMAGE_TOKENS
from vdm_jax.errors import UserError
from vdm_jax.stages.stage import Stage

# (captions, negative captions, given frames of the videos) -> `embeddings`, `text_mask`, `null_embeddings`, `null_mask`
# and `image_tokens` of a call
Encoder = Callable[[Sequence[str], Sequence[str] | None, MaskedVideo | None], dict[str, np.ndarray]]


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


def encoded(
    encoder: Encoder | None, stages: Sequence[Stage], captions: Sequence[str], negative: Sequence[str] | str | None,
    masked_video: MaskedVideo | None, given: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """What the encoder makes of captions or pictures; nothing without one, and where no stage reads embeddings. Image
    tokens that are given are not made anew. Raises `UserError` for negative captions that nothing encodes, and another
    number of them."""
    reads = encoder is not None and any(stage.network.text is not None and stage.network.text.embedded
                                        for stage in stages)
    if negative is not None:
        negative = (negative,) * len(captions) if isinstance(negative, str) else tuple(negative)
        if not reads or len(negative) not in (1, len(captions)):
            raise UserError(f"negative has {len(negative)} captions for {len(captions)}; permitted: one, or one for "
                            "each, where a stage reads embeddings and the encoder of captions is known")
        negative = negative * (len(captions) // len(negative))
    if not reads:
        return {}
    return encoder(captions, negative, masked_video if given.get(IMAGE_TOKENS) is None else None)


def frame_rates(stages: Sequence[Stage], fps: float | None) -> dict[str, float]:
    """Frames per second by stage, in proportion to `fps` of the first one where it is given. Raises `UserError` for a
    rate that no stage takes."""
    if fps is not None and (not fps > 0 or not any("fps" in stage.network.scalars for stage in stages)):
        raise UserError(f"fps={fps} is not valid; permitted: a rate above 0, for stages whose network takes the scalar "
                        "'fps'")
    factor = 1.0 if fps is None else fps / stages[0].video.fps
    return {stage.name: stage.video.fps * factor for stage in stages}


def at_rate(request: Request, fps: float) -> Request:
    """The same request of videos with this rate."""
    return Request(request.captions, {**request.given, "fps": fps})


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
