"""Sample sheets during training: a few captions, the stage's own videos of them, as one picture and one film."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.cascade.stage import Experiment, Stage
from vdm_jax.training.samples import StageSamples
from vdm_jax.video.sheets import sheet, tile_videos
from vdm_jax.video.writing import write_png, write_video

COUNT = 4  # videos per sheet


class SampleSheets:
    """Samples of fixed captions with fixed noise, so that sheets of different steps compare."""

    def __init__(self, experiment: Experiment, stage: Stage, folder: Path, mesh: Mesh, data_dir: Path | None,
                 autoencoder: tuple[Any, ...] = ()):
        self._folder, self._fps = folder, stage.video.fps
        self._samples = StageSamples(experiment, stage, COUNT, mesh, data_dir, autoencoder)

    def write(self, params: Any, step: int) -> np.ndarray:
        """Write the sheet and film of a step (process 0 does); returns the picture, uint8 `[H, W, 3]`."""
        videos = self._samples.videos(params)
        picture = sheet(videos, self._samples.captions)
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_png(self._folder / f"step_{step:07d}.png", picture)
            write_video(self._folder / f"step_{step:07d}.mp4", tile_videos(videos), self._fps)
        return picture
