"""Control maps of pipelines with ControlNets: those of each net, and how it counts, as arguments of the generator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vdm_jax.conditions.control import MAPS
from vdm_jax.configuration import Share, check_value
from vdm_jax.data.decoding import read_frames
from vdm_jax.errors import UserError
from vdm_jax.generation.released.pictures import open_pictures, resized
from vdm_jax.pipelines import arguments

LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)  # of ITU-R BT.601, as Pillow makes grey pictures


def for_each_net(name: str, value: Any, nets: int) -> list[Any]:
    """One value for all ControlNets, or one for each. Raises `UserError` for another number of them."""
    if not isinstance(value, list | tuple):
        return [value] * nets
    if len(value) != nets:
        raise UserError(f"{name} has {len(value)} values for {nets} ControlNets; permitted: one, or one for each", name)
    return list(value)


def options(nets: int, scale: Any, start: Any, end: Any, guess: Any, names: Sequence[str] = MAPS) -> dict[str, Any]:
    """Arguments of the generator: weights, intervals and guess mode of each map. Raises `UserError` for values that
    cannot be, by their names in pipelines."""
    if not isinstance(guess, bool):
        raise UserError(f"guess_mode={guess!r}; permitted: True, False")
    scales = for_each_net("controlnet_conditioning_scale", scale, nets)
    starts, ends = (for_each_net(f"control_guidance_{end}", value, nets) for end, value in (("start", start),
                                                                                            ("end", end)))
    found: dict[str, Any] = {}
    for name, weight, first, last in zip(names, scales, starts, ends, strict=False):
        weight = arguments.number("controlnet_conditioning_scale", weight)
        for what, share in (("start", first), ("end", last)):
            check_value(share, Share, f"control_guidance_{what}")
        if first >= last:
            raise UserError(f"control_guidance_start={first} with control_guidance_end={last}; permitted: a start "
                            "before the end, shares of the steps")
        found[f"{name}_scale"] = weight
        if (first, last) != (0, 1):
            found |= {f"{name}_start": float(first), f"{name}_end": float(last)}
        if guess:
            found[f"{name}_guess"] = True
    return found


def pictures(name: str, given: Any, nets: int, prompts: int) -> list[list[Any]]:
    """The opened maps of each ControlNet, one for each prompt. `given` are the maps of one net, one or one for each
    prompt, or of several nets a sequence of these. Raises `UserError` for other numbers of them."""
    if nets > 1 and (not isinstance(given, list | tuple) or len(given) != nets):
        count = len(given) if isinstance(given, list | tuple) else 1
        raise UserError(f"{name} has {count} entries for {nets} ControlNets; permitted: one for each", name)
    found = []
    for maps in map(open_pictures, given if nets > 1 else [given]):
        if len(maps) not in (1, prompts):
            raise UserError(f"{len(maps)} maps for {prompts} prompts; permitted: one, or one for each")
        found.append(maps * (prompts // len(maps)))
    return found


def pixels(maps: Sequence[Any], height: int, width: int, channels: int = 3) -> Float[np.ndarray, "B 1 H W D"]:
    """Pictures as maps in [0, 1] of videos of one frame; of one channel their luma."""
    found = np.clip(resized(maps, height, width) / 2 + 0.5, 0, 1)[:, None]
    return found if channels == 3 else found @ LUMA


def sparse(
    given: Any, places: Sequence[int], frames: int, height: int, width: int
) -> tuple[Float[np.ndarray, "T H W 3"], Bool[np.ndarray, " T"]]:
    """Pictures of single frames in [0, 1] as maps of a video, black elsewhere, and which frames have one. Raises
    `UserError` for other numbers of pictures than of places, and places beyond the video."""
    places = [places] if isinstance(places, int) else list(places)
    opened, unlike = open_pictures(given), len(set(places)) != len(places)
    for place in places:
        arguments.whole("controlnet_frame_indices", place, 0, frames - 1)
    if len(opened) != len(places) or not places or unlike:
        raise UserError(f"conditioning_frames has {len(opened)} pictures for controlnet_frame_indices={places}; "
                        "permitted: a picture for each, each frame once", "controlnet_frame_indices")
    maps, mask = np.zeros((frames, height, width, 3), np.float32), np.zeros(frames, bool)
    maps[places], mask[places] = np.clip(resized(opened, height, width) / 2 + 0.5, 0, 1), True
    return maps, mask


def video(name: str, given: Any, frames: int, height: int, width: int, fps: float) -> Float[np.ndarray, "T H W 3"]:
    """The maps of a video's frames in [0, 1]: of a file or a folder as `read_frames` takes it, at the rate `fps`, of
    one picture for all frames, or of a sequence or an array of as many pictures. Raises `UserError` for another number
    of frames and for what is no picture."""
    if isinstance(given, str | os.PathLike):
        return read_frames(Path(given), frames, height, width, fps).astype(np.float32) / 255
    if isinstance(given, np.ndarray) and given.ndim == 4:
        given = list(given)
    opened = open_pictures(given)
    if len(opened) not in (1, frames):
        raise UserError(f"{name} has {len(opened)} pictures for a video of {frames} frames; permitted: {frames}, or "
                        "one for all", name)
    found = np.clip(resized(opened, height, width) / 2 + 0.5, 0, 1)
    return np.broadcast_to(found, (frames, *found.shape[1:]))
