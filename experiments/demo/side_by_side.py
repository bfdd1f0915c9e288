"""Two videos as one, side by side under their titles: what ships and what the demo has trained.

Run:  python experiments/demo/side_by_side.py LEFT.mp4 "title" RIGHT.mp4 "title" --out both.mp4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vdm_jax.video.grids import text_strip, tile_videos
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video


def side_by_side(left: Path, left_title: str, right: Path, right_title: str, out: Path) -> Path:
    """Write both, each under its title, for as long as both last. Raises `UserError` for what is no video."""
    with VideoReader(left) as first, VideoReader(right) as second:
        count = min(len(first), len(second))
        videos, fps = [reader.frames(range(count)) for reader in (first, second)], first.fps
    height, width = (max(video.shape[axis] for video in videos) for axis in (1, 2))
    titled = []
    for video, title in zip(videos, (left_title, right_title), strict=True):
        shown = np.full((count, height, width, 3), 255, np.uint8)
        shown[:, :video.shape[1], :video.shape[2]] = video
        strip = np.broadcast_to(text_strip(title, width), (count, *text_strip(title, width).shape))
        titled.append(np.concatenate([strip, shown], axis=1))
    heights = [len(video[0]) for video in titled]
    titled = [np.pad(video, ((0, 0), (0, max(heights) - len(video[0])), (0, 0), (0, 0)), constant_values=255)
              for video in titled]
    return write_video(out, tile_videos(np.stack(titled), columns=2), fps)


def main() -> None:
    """Join the two videos that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("left", "right"):
        parser.add_argument(name, type=Path)
        parser.add_argument(f"{name}_title")
    parser.add_argument("--out", type=Path, required=True, help=".mp4 or .gif")
    options = parser.parse_args()
    print(side_by_side(options.left, options.left_title, options.right, options.right_title, options.out))


if __name__ == "__main__":
    main()
