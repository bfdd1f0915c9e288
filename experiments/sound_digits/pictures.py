"""The first videos of each row as strips of frames with marks where their beats are, and all strips as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from experiments.control_digits.pictures import PICTURE, strip_path
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.video.writing import atomic_path

Beats = Sequence[Int[np.ndarray, " N"]]  # frames, of each clip


def draw_strips(folder: Path, heard: Mapping[str, Beats], captions: Sequence[str], frames: int) -> Path | None:
    """One picture of the strips of some rows, with a mark above each frame that has a beat of the sound that the row
    heard; None where no strip is kept.

    Args:
      folder: where strips are kept, and the picture will be.
      heard: beats of each clip, by row.
      captions: of the clips.
      frames: of each clip.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    found = {name: imread(path) for name in heard if (path := strip_path(folder, name)).exists()}
    if not found:
        return None
    figure = Figure(figsize=(15, 0.8 * len(found) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, strip) in zip(np.atleast_1d(figure.subplots(len(found), 1)), found.items(), strict=True):
        axes.imshow(strip, interpolation="nearest", aspect="equal")
        axes.set_title(name, loc="left", fontsize=10, pad=9)
        axes.set_axis_off()
        side = strip.shape[1] / len(captions) / frames  # pixels of a frame
        marks = [(i * frames + beat + 0.5) * side - 0.5 for i, beats in enumerate(heard[name]) for beat in beats]
        axes.scatter(marks, [-0.22 * side] * len(marks), s=20, marker="v", color="black", clip_on=False)
        for i in range(1, len(captions)):
            axes.axvline(i * strip.shape[1] / len(captions) - 0.5, color="white", linewidth=2)
    figure.suptitle(" | ".join(captions), fontsize=10)
    path = folder / PICTURE
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return path
