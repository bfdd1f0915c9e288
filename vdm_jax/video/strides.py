"""A clip of another frame rate: every how many-th frame is taken."""

from __future__ import annotations

from typing import Any

import numpy as np

from vdm_jax.errors import UserError


def clip_by_stride(
    name: str, clip: dict[str, Any], fps: float, frames: int, rng: np.random.Generator
) -> dict[str, Any]:
    """`frames` frames from anywhere in a clip of fixed rate, by the stride that comes nearest to the rate `fps`.

    Raises `UserError` for a clip that is too short or does not say its rate.
    """
    if "fps" not in clip:
        raise UserError(f"{name}: clips that do not say their rate are to be read at other ones; permitted: clips with "
                        "fps")
    stride = stride_for(name, clip["fps"], fps, frames, len(clip["video"]))
    span = (frames - 1) * stride + 1
    start = int(rng.integers(len(clip["video"]) - span + 1))
    return clip | {"video": clip["video"][start : start + span : stride], "fps": clip["fps"] / stride}


def stride_for(name: str, own: float, fps: float, frames: int, available: int) -> int:
    """Every how many-th of `available` frames at the rate `own` a clip of `frames` frames takes, to come as near to the
    rate `fps` as they allow. Raises `UserError` when there are fewer frames."""
    if available < frames:
        raise UserError(f"{name}: {available} frames for a clip of {frames}; permitted: at most {available}")
    return max(1, min(round(own / fps), (available - 1) // max(frames - 1, 1)))
