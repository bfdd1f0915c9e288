"""The first videos of each row as strips of frames, and all strips as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.video.writing import atomic_path, write_png

SHOWN = 3  # videos, of the first clips
PICTURE = "samples.png"  # of all strips, next to the record


def strip_path(folder: Path, name: str) -> Path:
    """Where the strip of a row is kept."""
    return folder / "strips" / f"{''.join(c if c.isalnum() else '_' for c in name)}.png"


def keep_strips(folder: Path, name: str, videos: UInt8[np.ndarray, "N T H W 3"]) -> None:
    """Keep videos next to each other, frame by frame, in one picture."""
    path = strip_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.concatenate([np.concatenate(list(video), axis=1) for video in videos], axis=1))


def draw_strips(folder: Path, rows: Sequence[str], captions: Sequence[str]) -> Path | None:
    """One picture of the strips of some rows; None where none is kept."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    found = {name: imread(path) for name in rows if (path := strip_path(folder, name)).exists()}
    if not found:
        return None
    figure = Figure(figsize=(15, 0.95 * len(found) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, strip) in zip(np.atleast_1d(figure.subplots(len(found), 1)), found.items(), strict=True):
        axes.imshow(strip, interpolation="nearest", aspect="equal")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_axis_off()
        for i in range(1, len(captions)):
            axes.axvline(i * strip.shape[1] / len(captions) - 0.5, color="white", linewidth=2)
    figure.suptitle(" | ".join(captions), fontsize=10)
    path = folder / PICTURE
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return path
