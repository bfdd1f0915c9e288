"""What tests of published systems share: squares that move, with captions, and a tiny training."""

from __future__ import annotations

import io
from pathlib import Path

import jax
import numpy as np
import rich.console

from vdm_jax.data.embeddings import write_embeddings
from vdm_jax.runs.directory import open_run
from vdm_jax.stages.autoencoding import AnyExperiment
from vdm_jax.training.loop import Trainer
from vdm_jax.training.report import Report
from vdm_jax.video.writing import write_video


def train(experiment: AnyExperiment, run: Path, trainer: type[Trainer] = Trainer) -> None:
    """Train all stages into a run, on one device."""
    open_run(run, experiment)
    for stage in experiment.stages:
        report = Report(rich.console.Console(file=io.StringIO()))
        trainer(experiment, stage, run, report, devices=jax.devices()[:1]).train()


def write_squares(home: Path, frames: int, speed: int, maps: str | None = None) -> None:
    """Ten captioned videos of 16x16 pixels with a grey square that moves, embeddings of both captions and, in a folder
    of that name, maps that are white where the square is."""
    lines = ["file,caption"]
    for number in range(10):
        video, white = np.full((frames, 16, 16, 3), 20, np.uint8), np.zeros((frames, 16, 16, 3), np.uint8)
        for frame in range(frames):
            x, y = (number + speed * frame) % 8, number % 3
            video[frame, y : y + 8, x : x + 8], white[frame, y : y + 8, x : x + 8] = 160, 255
        write_video(home / "videos" / f"{number}.mp4", video, 8, lossless=True)
        if maps is not None:
            write_video(home / maps / f"{number}.mp4", white, 8, lossless=True)
        lines.append(f"{number}.mp4,square {number % 2}")
    (home / "captions.csv").write_text("\n".join(lines) + "\n")
    vectors = np.random.default_rng(0).normal(size=(2, 2, 6)).astype(np.float32)
    write_embeddings(home / "texts", ["square 0", "square 1"], vectors)
