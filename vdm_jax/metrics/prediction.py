"""Frame metrics of video prediction as MCVD publishes them (Voleti et al. 2022, arXiv 2205.09853, and its published
code, runners/ncsn_runner.py). They differ from those of `frames.py` in what is averaged, and are not comparable.

Each returns a value per video. Papers give the best of several predictions of a clip, each metric its own. On data with
random motion they rank a blurred mean of the futures above every future that can happen: read them next to FVD.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vdm_jax.metrics import frames

Videos = UInt8[np.ndarray, "N T H W 3"]
Values = Float[np.ndarray, " N"]

LPIPS_SIDE = 128  # pixels that frames are enlarged to before LPIPS


def video_mse(videos: Videos, real: Videos) -> Values:
    """Mean squared error of all pixels and frames of a video, in [0, 1]."""
    return np.array([((a.astype(np.float64) - b) ** 2).mean() for a, b in zip(videos, real, strict=True)]) / 255**2


def video_psnr(videos: Videos, real: Videos) -> Values:
    """Peak signal-to-noise ratio of the mean squared error of the whole video, dB, at most `frames.HIGHEST_PSNR`. It is
    lower than the mean over frames of theirs (`frames.psnr`)."""
    with np.errstate(divide="ignore"):
        return np.minimum(-10 * np.log10(video_mse(videos, real)), frames.HIGHEST_PSNR)


def rounded_ssim(videos: Videos, real: Videos) -> Values:
    """Structural similarity, Gaussian window, of frames whose pixels are rounded to black or white first, as MCVD does
    on Moving MNIST. Raises `UserError` as `frames.ssim`."""
    return frames.ssim(*(np.where(part > 127, np.uint8(255), np.uint8(0)) for part in (videos, real)))


def enlarged_lpips(videos: Videos, real: Videos) -> Values:
    """LPIPS by AlexNet of frames that Pillow enlarges (or reduces) to 128x128 bilinearly. Raises `UserError` as
    `frames.lpips`."""
    return frames.lpips(*(_enlarged(part) for part in (videos, real)))


def _enlarged(videos: Videos) -> UInt8[np.ndarray, "N T 128 128 3"]:
    return np.stack([[np.asarray(Image.fromarray(frame).resize((LPIPS_SIDE, LPIPS_SIDE), Image.Resampling.BILINEAR))
                      for frame in video] for video in videos])
