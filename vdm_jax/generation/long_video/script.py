"""Scripts: which caption holds from which frame of a long video on, and the conditioning of a clip's frames by it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, Request, conditions_of
from vdm_jax.conditions.image_tokens import IMAGE_TOKENS
from vdm_jax.data.captions import caption_lines
from vdm_jax.errors import UserError
from vdm_jax.generation.long_video.plan import Method, Segment
from vdm_jax.generation.prompts import arguments_of, at_rate, checked_request, of_frames
from vdm_jax.stages.stage import Stage

_LINE = re.compile(r"(\d{1,9})\s*:\s*(.*\S)")


@dataclasses.dataclass(frozen=True)
class Script:
    """Captions by time: each holds from its frame on, or changes linearly into the next one.

    Raises `UserError` for no captions, a first one that is not at frame 0, and frames out of order.
    """

    prompts: tuple[tuple[int, str], ...]  # (frame, caption)
    # Frames between two prompts: the caption before, or both embeddings in proportion to the distance in time
    between: Literal["hold", "interpolate"] = "hold"

    def __post_init__(self):
        times = [time for time, _ in self.prompts]
        if not times or times[0] != 0:
            raise UserError(f"Script.prompts begin at frame {times[0] if times else None}; permitted: 0")
        for before, after in zip(times, times[1:], strict=False):
            if after <= before:
                raise UserError(f"Script.prompts: frame {after} after frame {before}; permitted: frames in ascending "
                                "order, each once")

    def places(self, frames: Sequence[int]) -> tuple[Int[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Of each frame the number of its prompt, and the share of the next one."""
        times = np.array([time for time, _ in self.prompts])
        numbers = np.asarray(frames)
        place = np.searchsorted(times, numbers, side="right") - 1
        after = np.minimum(place + 1, len(times) - 1)
        length = np.maximum(times[after] - times[place], 1)
        share = np.where(after > place, (numbers - times[place]) / length, 0.0)
        return place, (share if self.between == "interpolate" else np.zeros_like(share)).astype(np.float32)


def read_script(path: Path, between: Literal["hold", "interpolate"] = "hold") -> Script:
    """A script from a text file with lines `FRAME: caption`, such as `40: a red 3 moving left`; lines that begin with
    `#` are left out. Raises `UserError` for a file that is missing, other lines, and as `Script`."""
    prompts = []
    for line in caption_lines(path, f"script={str(path)!r}"):
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise UserError(f"script={str(path)!r} has the line {line[:60]!r}; permitted: FRAME: caption, such as "
                            "'40: a red 3 moving left'")
        prompts.append((int(found[1]), found[2]))
    try:
        return Script(tuple(prompts), between)
    except UserError as error:
        raise UserError(f"script={str(path)!r}: {error}") from None


def scripts_of(captions: Sequence[str | Script] | str | Script, frames: int) -> tuple[Script, ...]:
    """Captions as scripts. Raises `UserError` for prompts that begin after the video's end."""
    captions = (captions,) if isinstance(captions, str | Script) else captions
    scripts = tuple(c if isinstance(c, Script) else Script(((0, c),)) for c in captions)
    for script in scripts:
        if script.prompts[-1][0] >= frames:
            raise UserError(f"Script.prompts has one at frame {script.prompts[-1][0]} of a video of {frames} frames; "
                            f"permitted: up to {frames - 1}")
    return scripts


def first_captions(scripts: Sequence[Script]) -> tuple[str, ...]:
    """The caption with which each begins."""
    return tuple(script.prompts[0][1] for script in scripts)


def all_captions(scripts: Sequence[Script]) -> tuple[str, ...]:
    """Those of all prompts, one script after another."""
    return tuple(caption for script in scripts for _, caption in script.prompts)


class LongRequest:
    """What is asked of long videos, as the conditioning of their segments.

    Args:
      stage: that samples the segments.
      scripts: one per video.
      texts: the request of all prompts of all scripts, one after another.
      request: the rest, of each video; maps have one entry for each of `frames` frames.
      fps: frames per second of the videos, of which a segment has every `stride`-th; None: of all segments the stage's
        own.

    Prompts of a stage that reads no text change nothing. Raises `UserError` where embeddings were to be interpolated
    and the network reads words.
    """

    def __init__(self, stage: Stage, scripts: Sequence[Script], texts: Request, request: Request, frames: int,
                 fps: float | None = None):
        self.stage, self.scripts, self.request, self.frames, self.fps = stage, scripts, request, frames, fps
        text = stage.network.text
        self.changes = text is not None and any(len(script.prompts) > 1 for script in scripts)
        if text is not None and not text.embedded and any(s.between == "interpolate" for s in scripts):
            raise UserError(f"Script.between='interpolate' for stage {stage.name!r}, which reads words; permitted: "
                            "'hold', or a stage that reads embeddings")
        self.text: dict[str, Any] = {} if text is None else CONDITIONS["text"].of_request(stage, texts)
        counts = [len(script.prompts) for script in scripts]
        self.first = np.cumsum([0, *counts[:-1]])  # prompt of each video among those of all

    def conditioning(self, segment: Segment) -> Conditioning:
        """Of one segment of all videos; where prompts change, one for each frame."""
        request = of_frames(self.stage, self.request, segment.start, segment.length, self.frames, segment.stride)
        if self.fps is not None:
            request = at_rate(request, self.fps / segment.stride)
        found = Conditioning()
        for condition in conditions_of(self.stage.network):
            own = self._texts(segment) if condition.name == "text" else condition.of_request(self.stage, request)
            found = found.adding(own)
        return found

    def _texts(self, segment: Segment) -> dict[str, Any]:
        if not self.changes:
            return self.text
        frames = np.minimum(segment.frames, self.frames - 1)
        found = [script.places(frames) for script in self.scripts]
        rows = np.stack([first + place for first, (place, _) in zip(self.first, found, strict=True)])
        last = np.array([first + len(s.prompts) - 1 for first, s in zip(self.first, self.scripts, strict=True)])
        after, share = np.minimum(rows + 1, last[:, None]), np.stack([share for _, share in found])
        parts = {name: value[rows, 0] for name, value in self.text.items() if not name.startswith("null")}
        if share.any():
            mask, weight = self.text["text_mask"][after, 0], share[..., None, None]
            parts["embeddings"] = (1 - weight) * parts["embeddings"] + weight * self.text["embeddings"][after, 0]
            parts["text_mask"] = parts["text_mask"] | jnp.where(weight[..., 0] > 0, mask, False)
        return parts | {name: value[self.first] for name, value in self.text.items() if name.startswith("null")}


def long_requests(
    stages: Sequence[Stage], method: Method, scripts: Sequence[Script], given: Mapping[str, Any], frames: int,
    rates: Mapping[str, float], request_of_texts: Callable[..., Request],
) -> tuple[LongRequest, ...]:
    """What is asked of each stage of long videos: of every prompt its text, of every video the rest.

    Args:
      stages: of the cascade that the method needs.
      given: as in a call of a generator.
      rates: frames per second by stage.
      request_of_texts: the request of captions, of what is given of their texts, and stages.

    Raises `UserError` as `checked_request` does, for prompts by time where no stage reads text, and for stages that see
    tokens of pictures.
    """
    pictured = [stage.name for stage in stages if IMAGE_TOKENS in (entry.name for entry in stage.network.conditions)]
    if pictured:
        raise UserError(f"stage {pictured[0]!r} sees tokens of the picture that a video begins with, and segments "
                        "begin with other frames; permitted: stages without the condition 'image_tokens'")
    captions = first_captions(scripts)
    changed = next((script for script in scripts if len(script.prompts) > 1), None)
    if changed is not None and all(stage.network.text is None for stage in stages):
        raise UserError(f"Script.prompts has {len(changed.prompts)} for stages that read no text; permitted: one")
    checked_request(captions, given, stages)
    fps, size = rates[stages[-1].name], stages[0].video.frames
    strides = {(segment.stage, segment.stride) for round_ in method.rounds(frames, size) for segment in round_}
    found = []
    for place, stage in enumerate(stages):
        of_text = set() if stage.network.text is None else set(stage.network.text.arguments)
        texts = {name: value for name, value in given.items() if name in of_text}
        rest = {name: given[name] for name in arguments_of(stage) if name in given and name not in of_text}
        own = given.get("fps") is None and all(math.isclose(fps / stride, stage.video.fps)
                                               for at, stride in strides if at == place)
        found.append(LongRequest(
            method.sampled_by(stage, frames) if place == 0 else stage, scripts,
            request_of_texts(all_captions(scripts), texts, (stage,)), checked_request(captions, rest, (stage,)), frames,
            None if own or "fps" not in stage.network.scalars else fps))
    return tuple(found)
