"""A video to edit."""

from pathlib import Path

import numpy as np

from vdm_jax.video.writing import write_video


def write_square(path: str | Path, frames: int) -> None:
    """A video of 40x40 pixels, 6 frames per second, of a bright square that moves to the right."""
    video = np.full((frames, 40, 40, 3), 20, np.uint8)
    for frame in range(frames):
        video[frame, 6:26, 2 * frame:2 * frame + 16] = 230
    write_video(path, video, 6)
