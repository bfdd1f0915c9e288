"""Longer videos of Stochastic Moving MNIST, block by block, by one network in three ways: by reconstruction guidance
and by replacement, neither of which shows it the frames of the block before, and conditioned on them.

Run:  python -m experiments.smmnist.extension runs/smmnist_one_stage

Video Diffusion Models (Ho et al. 2022, arXiv 2204.03458) found an FVD 3.3 times lower by guidance than by replacement.
A way that is in results/extension.json is not measured again.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.smmnist.run import FOLDER, PROTOCOL
from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.data.opening import open_source
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics.fvd import FeatureSet, fvd, i3d_features
from vdm_jax.runs.directory import load, stage_checkpoints
from vdm_jax.stages.options import Inpainting
from vdm_jax.video.writing import write_video

WAYS = {"replacement": Inpainting(method="replacement", shown=False),
        "reconstruction guidance, weight 2": Inpainting(method="reconstruction", weight=2.0, shown=False),
        "reconstruction guidance, weight 5": Inpainting(method="reconstruction", weight=5.0, shown=False),
        "conditioned": Inpainting(method="network")}
SHOWN = 4  # videos of the animation of a way


@dataclasses.dataclass(frozen=True)
class Extension:
    """Measure ways of extending videos."""

    run: tyro.conf.Positional[Path]
    clips: int = 64
    frames: int = 64
    overlap: int = 5  # frames that a block takes over
    steps: int | None = None  # of the sampler; the stage's own by default
    out: Path = FOLDER / "results" / "extension.json"
    fresh: bool = False  # forget the record


def main() -> None:
    """Entry of the script."""
    options = tyro.cli(Extension)
    generator = load(options.run)
    stage = generator.experiment.stages[0]
    size = stage.video.frames
    starts = np.arange(size, options.frames, size - options.overlap)  # first frames of all blocks but the first
    windows = [np.arange(start - size // 2, start - size // 2 + size) for start in starts
               if start - size // 2 + size <= options.frames]
    record = open_record(options.out, fresh=options.fresh, about={
        "device": describe(jax.devices()[0], 1), "versions": versions(), "protocol": {
            "clips": options.clips, "frames": options.frames, "overlap": options.overlap, "seed": 0,
            "steps": options.steps or stage.sampling.steps, "experiment": generator.experiment.name,
            "trained_steps": stage_checkpoints(options.run, stage.name).steps()[-1],
            "windows": len(windows) * options.clips, "window": size, "resize": PROTOCOL.resize}})
    first, second = (real(generator, options, start) for start in (0, options.clips))
    true = features(cut(first, windows), "real")
    if "real" not in record:
        record["real"] = {"fvd": distance(true, cut(second, windows)), "change": changes(first, starts)}
        save(options.out, record)
    for name, inpainting in WAYS.items():
        if name not in record["rows"]:
            record["rows"][name] = measured(name, inpainting, generator, options, windows, starts, true)
            save(options.out, record)
            print(name, record["rows"][name]["fvd"]["value"], file=sys.stderr, flush=True)


def measured(name: str, inpainting: Inpainting, generator: Generator, options: Extension, windows: list[np.ndarray],
             starts: np.ndarray, true: FeatureSet) -> dict[str, Any]:
    """Scores of a way, whose first videos are kept."""
    begun = time.perf_counter()
    videos = generator.extend([""] * options.clips, frames=options.frames, overlap=options.overlap,
                              inpainting=inpainting, seed=0, steps=options.steps).videos
    seconds = time.perf_counter() - begun
    slug = name.replace(" ", "_").replace(",", "")
    write_video(options.out.parent / f"extension_{slug}.gif", np.concatenate(videos[:SHOWN], axis=2), fps=8)
    return {"fvd": distance(true, cut(videos, windows)),
            "change": changes(videos, starts), "seconds": round(seconds, 1)}


def real(generator: Generator, options: Extension, start: int) -> np.ndarray:
    """Real clips of as many frames."""
    data = dataclasses.replace(generator.experiment.data, frames=options.frames, test_clips=start + options.clips)
    source = open_source(data, "test")
    return np.stack([source[start + i]["video"] for i in range(options.clips)])


def cut(videos: np.ndarray, windows: list[np.ndarray]) -> list[np.ndarray]:
    """Windows of frames with a seam in the middle."""
    return [video[window] for video in videos for window in windows]


def changes(videos: np.ndarray, starts: np.ndarray) -> float:
    """Mean change from frame to frame where blocks meet, over that elsewhere."""
    change = np.abs(np.diff(videos.astype(np.float32), axis=1)).mean((0, 2, 3, 4))
    return float(change[starts - 1].mean() / np.delete(change, starts - 1).mean())


def features(clips: list[np.ndarray], what: str) -> FeatureSet:
    """What the detector sees of clips, uint8 `[T, H, W, 3]` each."""
    frames, height, width = clips[0].shape[:3]
    return FeatureSet(features=i3d_features(clips, PROTOCOL.resize), data=f"StochasticMovingMNIST {what}", split="test",
                      frames=frames, stride=1, size=f"{height}x{width}", resize=PROTOCOL.resize)


def distance(true: FeatureSet, made: list[np.ndarray]) -> dict[str, Any]:
    """FVD between real windows and others."""
    return fvd(true, features(made, "made"), PROTOCOL).to_dict()


if __name__ == "__main__":
    main()
