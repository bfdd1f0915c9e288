"""Denoising long videos from key frames: the hierarchical sampler of ControlVideo (Zhang et al. 2023, arXiv 2305.13077,
section 3.3).

At every step the key frames are denoised together, and then the frames of each gap given the two key frames at its
ends. A longer video has more key frames and more gaps, but no longer gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdm_jax.diffusion.arrays import Level, Video
from vdm_jax.diffusion.windows import ConditionalDenoiser
from vdm_jax.errors import UserError

Places = Int[np.ndarray, " N"] | Int[Array, " N"]  # numbers of frames
AtFrames = Callable[[Any, Places], Any]  # (conditioning, numbers of frames) -> conditioning of these


def published_window(frames: int) -> int:
    """Frames from one key frame to the next, both of them included, as published: `floor(sqrt(frames))`, at least 3."""
    return max(math.isqrt(frames), 3)


def key_frames(frames: int, window: int) -> Int[np.ndarray, " N"]:
    """The key frames of a video: every `window - 1` frames from the first on, and the last. Raises `UserError` for a
    window of fewer than two frames."""
    if window < 2:
        raise UserError(f"window={window}; permitted: 2 frames or more, a key frame at either end", "key_frames.window")
    return np.unique(np.append(np.arange(0, frames, window - 1), frames - 1))


def gaps(frames: int, window: int) -> Int[np.ndarray, "M N"]:
    """The frames of each gap between key frames that has some: the key frames before and after it, then its own,
    followed by the first key frame again where it has fewer than `window - 2`."""
    keys = key_frames(frames, window)
    found = []
    for left, right in zip(keys, keys[1:], strict=False):
        own = np.arange(left + 1, right)
        if len(own):
            found.append([left, right, *own, *[left] * (window - 2 - len(own))])
    return np.array(found, np.int32).reshape(-1, window)


def from_key_frames(
    denoise_keys: ConditionalDenoiser, denoise_gap: ConditionalDenoiser, at: AtFrames, *, frames: int, window: int
) -> ConditionalDenoiser:
    """A denoiser of videos of `frames` frames.

    Args:
      denoise_keys: of the key frames, all together.
      denoise_gap: of `window` frames, which begin with the key frames before and after the others. What it makes of
        these two does not count. The others must not see each other, nor repeats of a key frame at their end.
      at: gives the part of a conditioning that belongs to some frames; their numbers may be traced.

    A window of all frames is `denoise_keys` alone. Gaps are denoised one after the other, so that no
    more than the key frames or one gap is denoised at a time. Raises `UserError` as `key_frames`.
    """
    if window >= frames:
        return denoise_keys
    keys, places = key_frames(frames, window), gaps(frames, window)

    def part(
        denoise: ConditionalDenoiser, z: Float[Array, "B T *rest"], logsnr: Level, conditioning: Any, some: Places
    ) -> Float[Array, "B N *rest"]:
        level = jnp.asarray(logsnr)
        return denoise(z[:, some], level[:, some] if level.ndim == 2 else level, at(conditioning, some))

    def denoise_whole(z: Video, logsnr: Level, conditioning: Any) -> Video:
        def fill(x: Video, gap: Int[Array, " N"]) -> tuple[Video, None]:
            made = part(denoise_gap, z, logsnr, conditioning, gap)
            return x.at[:, gap[2:]].set(made[:, 2:]), None

        x = jnp.zeros(z.shape, jnp.float32)
        if len(places):
            x, _ = jax.lax.scan(fill, x, jnp.asarray(places))
        # Last, since repeats at the end of a gap are key frames
        return x.at[:, keys].set(part(denoise_keys, z, logsnr, conditioning, keys))

    return denoise_whole
