"""Sample grids during training: fixed validation clips, what a stage generates for them and what it starts from, as one
picture and one video. Every row says what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from vdm_jax.stages.stage import Experiment, Source, Stage
from vdm_jax.training.samples import StageSamples
from vdm_jax.video.grids import enlarged, sample_grid, text_strip, tile_videos
from vdm_jax.video.writing import write_png, write_video

COUNT = 4  # clips per grid
GENERATED, REAL = "generated", "real"

Videos = UInt8[np.ndarray, "N T H W 3"]
Inputs = UInt8[np.ndarray, "N T1 H1 W1 3"]


class SampleGrids:
    """Samples of fixed clips with fixed noise, so that grids of different steps compare."""

    def __init__(self, experiment: Experiment, stage: Stage, folder: Path, mesh: Mesh, data_dir: Path | None,
                 autoencoder: tuple[Any, ...] = ()):
        self._folder = folder
        self._samples = StageSamples(experiment, stage, COUNT, mesh, data_dir, autoencoder)

    def write(self, params: Any, step: int) -> np.ndarray:
        """Write the grid of a step as a picture and as a video (process 0 does); returns the picture,
        uint8 `[H, W, 3]`."""
        samples, stage = self._samples, self._samples.stage  # as it is trained, on parts of clips where it is
        rows = {GENERATED: samples.videos(params), REAL: samples.real}
        given = samples.given
        title = f"stage {stage.name}, step {step}, seed {samples.seed}, {stage.video} pixels"
        picture = picture_grid(rows, given, stage.source, samples.captions, title)
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_png(self._folder / f"step_{step:07d}.png", picture)
            write_video(self._folder / f"step_{step:07d}.mp4", video_grid(rows, given, stage.source, title),
                        stage.video.fps)
        return picture


def picture_grid(rows: dict[str, Videos], given: Inputs | None, source: Source | None, captions: Sequence[str],
                 title: str) -> UInt8[np.ndarray, "height width 3"]:
    """A column per frame and for each clip a row of its input, where there is one, and of each of `rows`, with what it
    is above it, and the clip's caption above its first. Frames that an input lacks stay blank."""
    if given is not None:
        rows = {_input(source): input_frames(given, next(iter(rows.values())).shape, source, 255), **rows}
    videos = np.stack(list(rows.values()), 1).reshape(-1, *next(iter(rows.values())).shape[1:])
    labels = [f"clip {number}: {kind}" + (f', caption "{caption}"' if caption and place == 0 else "")
              for number, caption in enumerate(captions, 1) for place, kind in enumerate(rows)]
    return sample_grid(videos, labels, title)


def video_grid(rows: dict[str, Videos], given: Inputs | None, source: Source | None, title: str,
               ) -> UInt8[np.ndarray, "T height width 3"]:
    """A row per clip and a column for its input, where there is one, and for each of `rows`; a line above says so.
    Inputs with fewer frames hold each until the next."""
    if given is not None:
        rows = {_input(source): input_frames(given, next(iter(rows.values())).shape, source, None), **rows}
    videos = np.stack(list(rows.values()), 1).reshape(-1, *next(iter(rows.values())).shape[1:])
    tiled = tile_videos(enlarged(videos), columns=len(rows))
    strip = text_strip(f"{title}. Left to right: {', '.join(rows)}", tiled.shape[2])
    return np.concatenate([np.broadcast_to(strip, (len(tiled), *strip.shape)), tiled], axis=1)


def _input(source: Source) -> str:
    return f"input ({source.shown}, real)"


def input_frames(given: Inputs, shape: tuple[int, ...], source: Source, blank: int | None) -> Videos:
    """Inputs as videos of `shape`: pixels enlarged without smoothing, as they are; frames at their places in time, and
    between them this grey value, or with None the frame before."""
    count, frames, height, width, _ = shape
    every = source.stride(frames)
    down, across = (np.arange(size) * had // size for size, had in ((height, given.shape[2]), (width, given.shape[3])))
    large = given[:, :, down][:, :, :, across]
    video = large[:, np.minimum(np.arange(frames) // every, given.shape[1] - 1)].copy()
    if blank is not None:
        video[:, np.arange(frames) % every != 0] = blank
    return video
