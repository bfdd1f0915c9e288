"""Plots of a record: time, memory and FLOP/s against frames and against resolution, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.errors import require_package
from vdm_jax.video.writing import atomic_path

Row = dict[str, Any]
Series = Mapping[str, Sequence[tuple[float, Row]]]  # name -> (x, row), sorted
Panels = Mapping[str, Callable[[Row], float]]  # label -> quantity

QUANTITIES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "time": ("seconds per call", lambda row: row["seconds"]["median"]),
    "memory": ("memory, MiB", lambda row: row["memory"]["total"] / 2**20),
    "speed": ("GFLOP/s, mask-aware", lambda row: row["flops_per_second"] / 1e9),
}
AXES = {"frames": "frames", "resolution": "tokens per side of a frame"}


def require_matplotlib() -> None:
    """Raise `UserError` naming the extra when matplotlib is not installed."""
    require_package("a plot", "matplotlib", "plots", ", or --no-plots")


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what the record has: for every mode and axis along which some series grows, one picture with time, memory
    and speed side by side. Returns the files."""
    require_matplotlib()
    written = []
    rows = [row for row in record["rows"].values() if row["status"] == "measured"]
    for mode in dict.fromkeys(row["case"]["mode"] for row in rows):
        for axis in AXES:
            found = series([row for row in rows if row["case"]["mode"] == mode], axis)
            if found:
                path = folder / f"{mode.replace('+', '_')}_{axis}.png"
                picture(found, dict(QUANTITIES.values()), AXES[axis], f"{mode}, {record['device']['kind']}", path)
                written.append(path)
    return written


def series(rows: list[Row], axis: str) -> dict[str, list[tuple[int, Row]]]:
    """Rows that differ along an axis alone, as name -> (frames or tokens per side, row), sorted; only those that have
    at least two points."""
    groups: dict[tuple, list[tuple[int, Row]]] = {}
    for row in rows:
        case = row["case"]
        if case["height"] != case["width"]:
            continue
        value, fixed = case["frames"], f"{case['height']}x{case['width']} tokens"
        if axis == "resolution":
            value, fixed = case["height"], f"{case['frames']} frames"
        heads = f"{case['heads']}x{case['head_dim']} {case['dtype']}"
        context = "" if case["context"] == "none" else f" {case['context']}"
        name = f"{case['pattern']} {case['kernel']}{context}, {fixed}, {heads}, b{case['batch']}"
        groups.setdefault(name, []).append((value, row))
    return {name: sorted(points, key=lambda p: p[0]) for name, points in groups.items() if len(points) > 1}


def picture(found: Series, panels: Panels, xlabel: str, title: str, path: Path, linear: Collection[str] = ()) -> None:
    """Draw every quantity of every series against x, side by side on logarithmic axes, those named `linear` on linear
    ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5 + 0.16 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (label, quantity) in zip(axes, panels.items(), strict=True):
        for i, (name, points) in enumerate(found.items()):
            panel.plot([x for x, _ in points], [quantity(row) for _, row in points], label=name,
                       marker="osv^D"[i // 10 % 5])
        ticks = sorted({x for points in found.values() for x, _ in points})
        panel.set(xscale="log", yscale="linear" if label in linear else "log", xlabel=xlabel, ylabel=label)
        panel.set_xticks(ticks, [f"{x:.3g}" if isinstance(x, float) else str(x) for x in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
