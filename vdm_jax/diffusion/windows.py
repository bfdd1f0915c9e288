"""Denoising long videos window by window: temporal MultiDiffusion.

Bar-Tal et al. 2023, arXiv 2302.08113, for the spatial super-resolution of Lumiere (Bar-Tal et al. 2024, arXiv
2401.12945): a network for short clips denoises a long one by windows that overlap in time. At every step
the estimate is `argmin_x sum_i || x|_i - D(z|_i) ||^2` over the windows i, which is their average where they overlap,
and no border of a window is one of the video.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdm_jax.configuration import Count, Range, check_value
from vdm_jax.diffusion.arrays import Level, Video

ConditionalDenoiser = Callable[[Video, Level, Any], Video]  # (z, log-SNR, conditioning) -> x_hat
Cut = Callable[[Any, Int[Array, ""], int], Any]  # (conditioning, first frame, frames) -> conditioning of a window


def window_starts(frames: int, length: int, overlap: int) -> tuple[int, ...]:
    """First frames of windows of `length` that cover `frames`, each sharing `overlap` frames with the one before; the
    last one is aligned to the end and may share more. Raises `UserError` for windows that do not fit or do not go on.
    """
    check_value(length, Annotated[int, Range(least=1, most=frames)], "length")
    check_value(overlap, Annotated[int, Range(least=0, most=length - 1)], "overlap")
    count = 1 + math.ceil((frames - length) / (length - overlap))
    return tuple(min(i * (length - overlap), frames - length) for i in range(count))


def windowed(
    denoise: ConditionalDenoiser, cut: Cut, *, frames: int, length: int, overlap: int = 2, chunk: int = 1
) -> ConditionalDenoiser:
    """A denoiser of videos of `frames` frames from one of windows of `length` frames.

    Args:
      denoise: called with z `[B chunk, length, ...]`; a video's windows are neighbours in the batch, so that a device
        keeps them.
      cut: gives the part of a conditioning that belongs to a window; the first frame is traced.
      overlap: frames that neighbouring windows share at the least; 2 in Lumiere.
      chunk: windows denoised in one call; the others follow in a loop, so memory grows with this number alone.

    Raises `UserError` as `window_starts` does, and for `chunk` below 1.
    """
    starts = window_starts(frames, length, overlap)
    check_value(chunk, Count, "chunk")
    chunk = min(chunk, len(starts))
    missing = -len(starts) % chunk  # the last call is filled up with repeats that do not count
    counted = np.array([1.0] * len(starts) + [0.0] * missing, np.float32)
    chunks = np.array([*starts, *starts[-1:] * missing], np.int32).reshape(-1, chunk), counted.reshape(-1, chunk)
    windows = np.zeros(frames, np.float32)  # that a frame is in
    for start in starts:
        windows[start : start + length] += 1

    def denoise_whole(z: Video, logsnr: Level, conditioning: Any) -> Video:
        logsnr = jnp.asarray(logsnr)

        def window(start: Int[Array, ""]) -> tuple[Video, Level, Any]:
            level = logsnr if logsnr.ndim == 1 else cut_frames(logsnr, start, length)
            return cut_frames(z, start, length), level, cut(conditioning, start, length)

        def step(total: Video, part: tuple[Int[Array, " N"], Float[Array, " N"]]) -> tuple[Video, None]:
            inputs = [window(part[0][i]) for i in range(chunk)]
            x = denoise(*jax.tree.map(lambda *a: jnp.stack(a, 1).reshape(-1, *a[0].shape[1:]), *inputs))
            x = x.reshape(-1, chunk, *x.shape[1:])
            for i in range(chunk):
                so_far = cut_frames(total, part[0][i], length)
                total = jax.lax.dynamic_update_slice_in_dim(total, so_far + part[1][i] * x[:, i], part[0][i], 1)
            return total, None

        total, _ = jax.lax.scan(step, jnp.zeros(z.shape, jnp.float32), jax.tree.map(jnp.asarray, chunks))
        return total / windows.reshape(-1, *[1] * (z.ndim - 2))

    return denoise_whole


def following(
    denoise: ConditionalDenoiser, cut: Cut, *, frames: int, length: int, behind: int, clean: Level
) -> ConditionalDenoiser:
    """A denoiser of videos of `frames` frames with levels of their own, finished from the first on, from one of
    `length` frames: one window that follows the frames being denoised (Rolling Diffusion: Ruhe et al. 2024, arXiv
    2402.09470; FIFO-Diffusion: Kim et al. 2024, arXiv 2405.11473). All videos of a batch have the same levels.

    Args:
      denoise, cut: as of `windowed`.
      behind: frames of the window before the first whose log-SNR is below `clean`; the last of them may be at its last
        step, the others are finished.
      clean: log-SNR at which finished frames are.

    Estimates outside the window are zeros. Raises `UserError` for windows that do not fit or have no frame behind.
    """
    check_value(length, Annotated[int, Range(least=1, most=frames)], "length")
    check_value(behind, Annotated[int, Range(least=1, most=max(length - 1, 1))], "behind")

    def denoise_whole(z: Video, logsnr: Level, conditioning: Any) -> Video:
        noisy = jnp.asarray(logsnr)[0] < clean
        first = jnp.where(noisy.any(), jnp.argmax(noisy), frames)
        start = jnp.clip(first - behind, 0, frames - length)
        x = denoise(cut_frames(z, start, length), cut_frames(logsnr, start, length), cut(conditioning, start, length))
        return jax.lax.dynamic_update_slice_in_dim(jnp.zeros(z.shape, x.dtype), x, start, axis=1)

    return denoise_whole


def cut_frames(x: Float[Array, "B T *rest"], start: Int[Array, ""], length: int) -> Float[Array, "B L *rest"]:
    """`length` frames from `start` on, which may be traced."""
    return jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)
