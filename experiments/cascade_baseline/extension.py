"""Videos of 64 frames from a model of 16, block by block, by reconstruction guidance and by replacement.

Needs: pip install 'vdm_jax[metrics,plots]'
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.digits.clips import CaptionedDigitsSource, prompts
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics.fvd import FeatureSet, fvd, i3d_features
from vdm_jax.metrics.fvd_protocols import PROTOCOLS
from vdm_jax.stages.options import Inpainting
from vdm_jax.video.grids import sample_grid
from vdm_jax.video.writing import write_png

METHODS = {"replacement": Inpainting(method="replacement"),
           "reconstruction guidance, weight 2": Inpainting(method="reconstruction", weight=2.0)}
PROTOCOL = PROTOCOLS["original"]


def compare(generator: Generator, *, clips: int, frames: int, results: Path) -> dict[str, Any]:
    """Both methods on the same captions and seeds: how much changes from frame to frame where blocks meet, next to
    elsewhere; the Frechet video distance of windows across seams to real clips; what the last block still shows of the
    caption."""
    stage = generator.experiment.stages[0]
    captions = prompts(generator.experiment.data, "test", clips, objects=1)
    size = stage.video.frames
    seams = np.arange(size - 1, frames - 1, size - size // 2)  # a block knows half of the one before
    starts = range(size // 2, frames - size + 1, size)  # windows side by side, a seam in the middle of each
    count, rows = clips * len(starts), {}
    source = CaptionedDigitsSource(generator.experiment.data, "test")
    real, other = (features([source[i]["video"] for i in range(begin, begin + count)], "real clips")
                   for begin in (0, count))
    for name, inpainting in METHODS.items():
        start = time.perf_counter()
        videos = generator.extend(captions, frames=frames, inpainting=inpainting).videos
        seconds = round(time.perf_counter() - start, 1)
        change = np.abs(np.diff(videos.astype(np.float32), axis=1)).mean((0, 2, 3, 4))
        scores = DigitScorer(generator.experiment.data).score(videos[:, -size:], captions).summary()
        windows = features([video[i : i + size] for video in videos for i in starts], name)
        rows[name] = {"change at seams": float(change[seams].mean() / np.delete(change, seams).mean()),
                      "fvd": fvd(real, windows, PROTOCOL).to_dict(),
                      "last block": {key: scores[key] for key in ("count", "colour")}, "seconds": seconds}
        slug = name.replace(" ", "_").replace(",", "")
        write_png(results / f"extension_{slug}.png", sample_grid(videos[:4, ::4], captions[:4]))
    return {"clips": clips, "frames": frames, "sampler_steps": stage.sampling.steps, "windows": count,
            "fvd of other real clips": fvd(real, other, PROTOCOL).to_dict(), "methods": rows}


def features(clips: list[np.ndarray], what: str) -> FeatureSet:
    """What the detector sees of clips, uint8 `[T, H, W, 3]` each."""
    frames, height, width = clips[0].shape[:3]
    return FeatureSet(features=i3d_features(clips, PROTOCOL.resize), data=f"captioned digits: {what}", split="test",
                      frames=frames, stride=1, size=f"{height}x{width}", resize=PROTOCOL.resize)
