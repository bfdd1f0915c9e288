"""The first videos of each pattern's first seed, as strips of frames: what the scores are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.attention_benchmark.variants import VARIANTS
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.video.writing import atomic_path, write_png

SHOWN = 3  # videos, of the first captions of the test split


def strip_path(folder: Path, variant: str, frames: int) -> Path:
    """Where the strip of a pattern is kept."""
    name = "".join(c if c.isalnum() else "_" for c in variant)
    return folder / "which_pattern" / f"{name}_{frames}.png"


def keep_strip(folder: Path, variant: str, videos: UInt8[np.ndarray, "B T H W 3"]) -> None:
    """Keep the first videos next to each other, frame by frame, in one picture."""
    path = strip_path(folder, variant, videos.shape[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.concatenate([np.concatenate(list(video), axis=1) for video in videos[:SHOWN]], axis=1))


def draw_strips(record: dict[str, Any], frames: int, folder: Path) -> Path | None:
    """One picture of all strips; None where none is kept."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    found = {name: imread(path) for name in VARIANTS if (path := strip_path(folder, name, frames)).exists()}
    if not found:
        return None
    first = next(iter(found.values()))
    captions = record["captions"][:SHOWN]
    figure = Figure(figsize=(15, 15 * first.shape[0] / first.shape[1] * len(found) + 0.35 * len(found) + 0.4),
                    layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, strip) in zip(np.atleast_1d(figure.subplots(len(found), 1)), found.items(), strict=True):
        axes.imshow(strip, interpolation="nearest", aspect="equal")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_axis_off()
        for i in range(1, len(captions)):
            axes.axvline(i * strip.shape[1] / len(captions) - 0.5, color="white", linewidth=2)
    figure.suptitle(" | ".join(captions), fontsize=10)
    path = folder / f"which_pattern_samples_{frames}.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return path
