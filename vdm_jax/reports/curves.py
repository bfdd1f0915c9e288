"""Curves as SVG text: lines of several runs in one picture, without a plotting library and without scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

COLOURS = ("#1f6fb4", "#d1495b", "#2e8b57", "#8a5fbf", "#c77d18", "#3aa6a6", "#7a5c46", "#6b7280")
_WIDTH, _HEIGHT = 460, 250  # of the picture, pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 26, 46  # margins, pixels
_POINTS = 300  # most points of a line; more are averaged in groups
_WHOLE, _DASHED = 'stroke-width="1.6"', 'stroke-width="1.2" stroke-dasharray="5 4"'
_MARKED = 40  # most points that are marked


Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by name: x and y


def chart(title: str, lines: Lines, colours: Mapping[str, str], dashed: Lines = MappingProxyType({}),
          x_label: str = "step") -> str:
    """One picture: a line of (x, y) for each name, with its points where they are few, and dashed ones of the same
    names, for what the lines should come to. Values that are not finite are left out; the y axis is logarithmic where
    all values are above 0 and span more than a factor of 20."""
    points, aims = _kept(lines), _kept(dashed)
    if not points:
        return ""
    xs, ys = (np.concatenate([pair[i] for pair in (*points.values(), *aims.values())]) for i in (0, 1))
    logarithmic = ys.min() > 0 and ys.max() > 20 * ys.min()
    scale = np.log10 if logarithmic else np.asarray
    across, up = _axis(xs.min(), xs.max(), _LEFT, _WIDTH - _RIGHT), _axis(
        scale(ys.min()), scale(ys.max()), _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">',
             f'<text x="{_LEFT}" y="16" class="title">{html.escape(title)}{" (log)" if logarithmic else ""}</text>']
    for value in _ticks(float(scale(ys.min())), float(scale(ys.max()))):
        y, shown = up(value), 10**value if logarithmic else value
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                     f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown:.3g}</text>')
    for value in _ticks(float(xs.min()), float(xs.max()), whole=x_label == "step"):
        parts.append(f'<text x="{across(value):.1f}" y="{_HEIGHT - 28}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{x_label}</text>')

    def places(x: np.ndarray, y: np.ndarray) -> list[str]:
        return [f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x, scale(y), strict=True)]

    for name, (x, y) in aims.items():
        level = (np.array([xs.min(), xs.max()]), y[[0, 0]]) if len(x) == 1 else (x, y)
        parts.append(_line(f"{name}, real clips", places(*level), colours[name], _DASHED))
    parts += [_line(name, places(*pair), colours[name], _WHOLE) for name, pair in points.items()]
    return "".join([*parts, "</svg>"])


def _line(title: str, places: Sequence[str], colour: str, style: str) -> str:
    """Points "x,y", joined; whole lines of few points have them marked."""
    marks = ""
    if style == _WHOLE and len(places) <= _MARKED:
        pairs = (place.split(",") for place in places)
        marks = "".join(f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}"/>' for x, y in pairs)
    line = f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" {style}/>' if len(places) > 1 else ""
    return f"<g><title>{html.escape(title)}</title>{line}{marks}</g>"


def _kept(lines: Lines) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The lines that have finite points, thinned."""
    found = {name: _thinned(np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in lines.items()}
    return {name: (x, y) for name, (x, y) in found.items() if len(x)}


def _axis(low: float, high: float, start: float, end: float):
    span = high - low or 1.0
    return lambda value: start + (float(value) - low) / span * (end - start)


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Up to six round values from low to high, integers where asked."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10 ** math.floor(math.log10(span))
    step = next(step * factor for factor in (0.1, 0.2, 0.25, 0.5, 1, 2) if span / (step * factor) <= 5)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, int(high / step + 1e-9) + 1)] or [low]


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= _POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), _POINTS)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])
