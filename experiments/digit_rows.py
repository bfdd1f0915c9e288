"""What experiments on digits whose truth is known share: a record whose rows are measured once each, strips of the
first videos of each row, tables of the rows, and scripts that say in one line why they stop."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.benchmark.record import difference, open_record, save
from vdm_jax.errors import UserError
from vdm_jax.video.writing import atomic_path, write_png

SHOWN = 3  # videos, of the first clips
PICTURE = "samples.png"  # of all strips, next to the record
Videos = UInt8[np.ndarray, "N T H W 3"]


class Rows:
    """A record in `options.out`: what was measured of videos, by the name of their row."""

    def __init__(self, options: Any, protocol: Mapping[str, Any]):
        self.options = options
        self.record = open_record(options.out, fresh=options.fresh, about={
            "device": describe(jax.devices()[0], len(jax.devices())), "versions": versions(), "protocol": protocol})

    def measured(self, videos: Videos, **more: Any) -> dict[str, Any]:
        """All measures of videos."""
        raise NotImplementedError

    def row(self, name: str, make: Callable[[], Videos], **more: Any) -> None:
        """Measure the videos that `make` makes, unless the record has them."""
        if name in self.record["rows"]:
            return
        start = time.perf_counter()  # of sampling, compilation included, and measuring
        videos = make()
        found = self.measured(videos, **more) | {"seconds": round(time.perf_counter() - start, 1)}
        keep_strips(self.options.out.parent, name, videos[:SHOWN])
        self.write(name, found)

    def write(self, name: str, found: Mapping[str, Any]) -> None:
        """A row of the record."""
        self.record["rows"][name] = found
        save(self.options.out, self.record)
        means = {key: round(value["mean"], 3) for key, value in found.items() if isinstance(value, dict)}
        print(name, means or found, file=sys.stderr, flush=True)

    def take(self, part: str, found: Mapping[str, Any]) -> None:
        """Write what a part of the experiment is into the record. Raises `UserError` where it has another one; what an
        older record does not say is not compared."""
        known = self.record.get(part, {})
        if known != {name: found.get(name) for name in known}:
            raise UserError(f"{self.options.out} was recorded with another {part}: {difference(known, found)}; "
                            "permitted: the same, another --out, or --fresh to measure everything again")
        if known != found:
            self.record[part] = found
            save(self.options.out, self.record)


def strip_path(folder: Path, name: str) -> Path:
    """Where the strip of a row is kept."""
    return folder / "strips" / f"{''.join(c if c.isalnum() else '_' for c in name)}.png"


def keep_strips(folder: Path, name: str, videos: Videos) -> None:
    """Keep videos next to each other, frame by frame, in one picture."""
    path = strip_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.concatenate([np.concatenate(list(video), axis=1) for video in videos], axis=1))


def draw_strips(
    folder: Path, rows: Iterable[str], captions: Sequence[str], mark: Callable[[Any, str, int], None] | None = None
) -> Path | None:
    """One picture of the strips of some rows; None where none is kept. `mark(axes, row, width)` draws on each, whose
    width is in pixels."""
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
        axes.set_title(name, loc="left", fontsize=10, pad=6 if mark is None else 9)
        axes.set_axis_off()
        if mark is not None:
            mark(axes, name, strip.shape[1])
        for i in range(1, len(captions)):
            axes.axvline(i * strip.shape[1] / len(captions) - 0.5, color="white", linewidth=2)
    figure.suptitle(" | ".join(captions), fontsize=10)
    path = folder / PICTURE
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return path


def cell(value: Mapping[str, float]) -> str:
    """A mean with half of its interval."""
    return f"{value['mean']:.2f} ± {value['half']:.2f}" if value["clips"] else "-"


def lines_of(record: Mapping[str, Any], first: str, columns: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """A table with a line for each row of these names that the record has."""
    rows = record["rows"]
    return [f"| {first} | {' | '.join(columns.values())} |", "|---|" + "---:|" * len(columns),
            *(f"| {name} | {' | '.join(cell(rows[name][column]) for column in columns)} |"
              for name in names if name in rows)]


def with_picture(text: str, title: str, page: Path, picture: Path) -> str:
    """A text, and under it a picture where there is one, by its place next to the page."""
    return text + f"\n\n![{title}]({os.path.relpath(picture, page.parent)})" * picture.exists()
