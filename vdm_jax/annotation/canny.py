"""Edges by Canny's method, thin lines of white on black (OpenCV)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from vdm_jax.annotation.frames import frames_of
from vdm_jax.configuration import NonNegative, config
from vdm_jax.errors import UserError, require_package
from vdm_jax.video.reading import VideoReader


@config
class Canny:
    """Thresholds of the gradient, of 8-bit grey; 100 and 200 are those of the published ControlNet."""

    low: NonNegative = 100.0  # an edge goes on down to it
    high: NonNegative = 200.0  # an edge begins above it

    def __post_init__(self):
        if self.low > self.high:
            raise UserError(f"Canny(low={self.low}, high={self.high}) is not valid; permitted: low <= high")

    def check(self) -> None:
        """Raise `UserError` where OpenCV is not installed."""
        require_package("canny", "cv2", "metrics")

    def frames(self, video: VideoReader, name: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The edges of each frame."""
        import cv2

        for frame in frames_of(video):
            grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
            yield np.repeat(cv2.Canny(grey, self.low, self.high)[..., None], 3, axis=-1)
