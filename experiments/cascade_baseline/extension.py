"""Videos of 64 frames from a model of 16, block by block, by reconstruction guidance and by replacement."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.cascade.generator import Generator
from vdm_jax.cascade.options import Completion
from vdm_jax.data.captioned_digits import prompts
from vdm_jax.evaluation.scorer import DigitScorer
from vdm_jax.video.sheets import sheet
from vdm_jax.video.writing import write_png

METHODS = {"replacement": Completion(method="replacement"),
           "reconstruction guidance, weight 2": Completion(method="reconstruction", weight=2.0),
           "reconstruction guidance, weight 5": Completion(method="reconstruction", weight=5.0)}


def compare(generator: Generator, *, clips: int, frames: int, results: Path) -> dict[str, Any]:
    """Both methods on the same captions and seeds: how much changes from frame to frame where blocks meet, beside
    elsewhere, and what the last block still shows of the caption."""
    stage = generator.experiment.stages[0]
    captions = prompts(generator.experiment.data, "test", clips, objects=1)
    size = stage.video.frames
    seams = np.arange(size - 1, frames - 1, size - size // 2)  # a block knows half of the one before
    rows = {}
    for name, completion in METHODS.items():
        start = time.perf_counter()
        videos = generator.extend(captions, frames=frames, completion=completion).videos
        change = np.abs(np.diff(videos.astype(np.float32), axis=1)).mean((0, 2, 3, 4))
        scores = DigitScorer().score(videos[:, -size:], captions).summary()
        rows[name] = {"change at seams": float(change[seams].mean() / np.delete(change, seams).mean()),
                      "last block": {key: scores[key] for key in ("count", "colour")},
                      "seconds": round(time.perf_counter() - start, 1)}
        slug = name.replace(" ", "_").replace(",", "")
        write_png(results / f"extension_{slug}.png", sheet(videos[:4, ::4], captions[:4]))
    return {"clips": clips, "frames": frames, "sampler_steps": stage.sampling.steps, "methods": rows}
