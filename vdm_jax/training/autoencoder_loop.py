"""The training loop of an autoencoder: that of every stage, with other losses and grids of reconstructions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.data.opening import open_validation
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.parallel.processes import together
from vdm_jax.parallel.rules import batch_parts
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderStage
from vdm_jax.stages.inputs import target_video
from vdm_jax.training.autoencoder_step import compile_autoencoder_step, compile_reconstruction, perceptual_parameters
from vdm_jax.training.init_from import starting_autoencoder
from vdm_jax.training.loop import Grids, Trainer
from vdm_jax.training.sample_grids import COUNT
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import Batch
from vdm_jax.video.arrays import to_uint8
from vdm_jax.video.grids import sample_grid, tile_videos
from vdm_jax.video.writing import write_png, write_video
from vdm_jax.weights.inflation import Inflation

Reconstruct = Callable[[Any, Any], dict[str, jax.Array]]


@dataclasses.dataclass
class AutoencoderTrainer(Trainer):
    """One autoencoder of an experiment being trained in a run directory."""

    experiment: AutoencoderExperiment
    stage: AutoencoderStage
    perceptual: Any = None  # parameters of LPIPS, once read
    program: Reconstruct | None = None  # that makes reconstructions, once asked for

    def train(self) -> None:
        """Train as `Trainer.train` does; first of all the weights of LPIPS are looked for."""
        together(lambda: perceptual_parameters(self.stage))
        super().train()

    def _read_frozen(self) -> None:
        self.perceptual = perceptual_parameters(self.stage)

    def _inputs(self, batch: Batch, key: jax.Array, *autoencoder: Any) -> Any:
        return target_video(batch["video"], self.stage.video)

    def _starting_weights(self) -> tuple[Inflation, Any]:
        return starting_autoencoder(self.stage)

    def _read_beside(self, source: RandomAccessSource, split: str) -> dict[str, Any]:
        return {}

    def _step(self, mesh: Mesh) -> Callable[[int, TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
        function = compile_autoencoder_step(self.stage, mesh, self.perceptual)
        return lambda step, state, batch: function(step, state, batch["video"])

    def _reconstruct(self, mesh: Mesh) -> Reconstruct:
        """One program for validation and grids."""
        if self.program is None:
            self.program = compile_reconstruction(self.stage, mesh, self.perceptual)
        return self.program

    def _losses(self, mesh: Mesh) -> Callable[[Any, Batch], dict[str, float]]:
        reconstruct = self._reconstruct(mesh)

        def losses(params: Any, batch: Batch) -> dict[str, float]:
            found = reconstruct(params, batch["video"])
            return {"validation_loss": float(found["loss"]), "validation_psnr": float(found["psnr"])}

        return losses

    def _grids(self, folder: Path, mesh: Mesh) -> Grids:
        source = open_validation(self.experiment.data, self.experiment.validation_split, self.data_dir)
        count = -(-COUNT // batch_parts(mesh)) * batch_parts(mesh)
        clips = np.stack([source[i % len(source)]["video"] for i in range(count)])
        return ReconstructionSheets(self._reconstruct(mesh), clips, folder, self.stage.video.fps)


@dataclasses.dataclass
class ReconstructionSheets:
    """Fixed validation clips, each above its reconstruction (in videos: next to it)."""

    reconstruct: Reconstruct
    clips: np.ndarray  # uint8, the same in every process
    folder: Path
    fps: float

    def write(self, params: Any, step: int) -> np.ndarray:
        """Write the grid and video of a step (process 0 does); returns the picture, uint8 `[H, W, 3]`."""
        found = self.reconstruct(params, self.clips)
        pairs = [np.asarray(to_uint8(found[name]))[:COUNT] for name in ("original", "video")]
        videos = np.stack(pairs, axis=1).reshape(-1, *pairs[0].shape[1:])
        picture = sample_grid(videos, ["original", "reconstruction"] * len(pairs[0]))
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_png(self.folder / f"step_{step:07d}.png", picture)
            write_video(self.folder / f"step_{step:07d}.mp4", tile_videos(videos, columns=2), self.fps)
        return picture
