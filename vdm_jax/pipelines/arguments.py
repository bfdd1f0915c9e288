"""Arguments of pipelines, checked before any work. Each function raises `UserError` with argument, value and range."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from vdm_jax.configuration import Range, check_value
from vdm_jax.errors import UserError

SIDE = 16_384  # pixels
FRAMES = 4096
COPIES = 1024  # videos of a prompt
SEEDS = 2**32  # of threefry keys


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from `low` to `high`; numpy's are permitted, truth values are not."""
    check_value(value, Annotated[int, Range(least=low, most=high)], name)
    return int(value)


def number(name: str, value: Any, low: float = 0.0) -> float:
    """A finite number from `low` on."""
    check_value(value, Annotated[float, Range(least=low)], name)
    return float(value)


def noise(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Noise of a shape; None stays None."""
    if value is None:
        return None
    try:
        found = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{name} is a {type(value).__name__}; permitted: noise of shape {list(shape)}") from None
    if found.shape != shape:
        raise UserError(f"{name} of shape {list(found.shape)}; permitted: noise of shape {list(shape)}")
    if not np.isfinite(found).all():
        raise UserError(f"{name} has values that are not finite; permitted: noise of shape {list(shape)}")
    return found


def texts(name: str, value: Any, count: int | None = None) -> tuple[str, ...]:
    """One text or several; None is the empty text where there is a `count`, so many times that one is repeated."""
    found = [value] if isinstance(value, str) or value is None else value
    if isinstance(found, list | tuple) and count is not None:
        found = ["" if text is None else text for text in found]
    if not isinstance(found, list | tuple) or not found or not all(isinstance(text, str) for text in found):
        raise UserError(f"{name}={value!r}; permitted: a text or several" + (", or None" if count is not None else ""))
    found = tuple(found) * (count if count is not None and len(found) == 1 else 1)
    if count is not None and len(found) != count:
        raise UserError(f"{name} has {len(found)} texts for {count} prompts; permitted: one, or one for each")
    return found


def shared(*, height: Any, width: Any, steps: Any, seed: Any, progress: Any) -> None:
    """What every pipeline takes. Sizes may be None: those of the training."""
    for name, value in (("height", height), ("width", width)):
        if value is not None:
            whole(name, value, 1, SIDE)
    whole("num_inference_steps", steps, 1, 10_000)
    whole("seed", seed, 0, SEEDS - 1)
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise UserError(f"progress={progress!r}; permitted: a function (what, done, total), None or False")


def size(frames: Any, height: Any, width: Any) -> None:
    """Sizes of videos that pictures are brought to. Each may be None: the model's."""
    for name, value, most in (("num_frames", frames, FRAMES), ("height", height, SIDE), ("width", width, SIDE)):
        if value is not None:
            whole(name, value, 1, most)


def video(*, frames: Any, fps: Any, chunk: Any) -> None:
    """What pipelines of videos take in addition. Frames may be None: the model's; a chunk too: all frames."""
    if frames is not None:
        whole("num_frames", frames, 1, FRAMES)
    whole("fps", fps, 1, 1000)
    if chunk is not None:
        whole("decode_chunk_size", chunk, 1, FRAMES)
