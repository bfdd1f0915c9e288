"""Curves of several runs in one picture, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from vdm_jax.errors import require_package

COLOURS = ("#1f6fb4", "#d1495b", "#2e8b57", "#8a5fbf", "#c77d18", "#3aa6a6", "#7a5c46", "#6b7280")
_POINTS = 300  # most points of a line; more are averaged in groups
_MARKED = 40  # most points that are marked

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by name: x and y


def require_packages() -> None:
    """Raises `UserError` naming the extra where matplotlib or Jinja2 is not installed."""
    for module in ("matplotlib", "jinja2"):
        require_package("a report", module, "plots")


def chart(title: str, lines: Lines, colours: Mapping[str, str], dashed: Lines = MappingProxyType({}),
          x_label: str = "step") -> str:
    """One picture as SVG: a line of (x, y) for each name, with its points where they are few, and dashed ones of the
    same names, for what the lines should come to. Values that are not finite are left out, and nothing is drawn where
    none is left; the y axis is logarithmic where all values are above 0 and span more than a factor of 20."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    points, aims = _kept(lines), _kept(dashed)
    if not points:
        return ""
    values = np.concatenate([y for _, y in (*points.values(), *aims.values())])
    logarithmic = values.min() > 0 and values.max() > 20 * values.min()
    # Text stays text, and equal pictures are equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vdm_jax"}):
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        axes = figure.subplots()
        for name, (x, y) in aims.items():
            shape = {"color": colours[name], "linestyle": "--", "linewidth": 1.2, "gid": f"{name}, real clips"}
            axes.plot(x, y, **shape) if len(x) > 1 else axes.axhline(y[0], **shape)
        for name, (x, y) in points.items():
            axes.plot(x, y, color=colours[name], linewidth=1.6, marker="o" if len(x) <= _MARKED else "", markersize=4,
                      gid=name)
        axes.set_title(f"{title}{' (log)' if logarithmic else ''}", loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x_label == "step"))
        if logarithmic:
            axes.set_yscale("log")
            few = values.max() < 1e3 * values.min()  # decades
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
            axes.yaxis.set_major_formatter(lambda value, place: f"{value:.3g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return file.getvalue()


def _kept(lines: Lines) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The lines that have finite points, thinned."""
    found = {name: _thinned(np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in lines.items()}
    return {name: (x, y) for name, (x, y) in found.items() if len(x)}


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= _POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), _POINTS)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])
