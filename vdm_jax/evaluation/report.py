"""One page of what is known of runs: configs, curves, samples, scores, side by side. It is a single HTML file that
opens from disk: pictures and videos are inside it, there are no scripts, and its policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.cascade.autoencoding import AnyExperiment
from vdm_jax.configuration import to_data, to_json
from vdm_jax.errors import UserError
from vdm_jax.evaluation.curves import COLOURS, chart
from vdm_jax.evaluation.scores import Score, require_comparable
from vdm_jax.training.metrics import FILENAME, read_metrics
from vdm_jax.training.runs import differences, read_config

LARGEST = 12 * 2**20  # bytes of a picture or video that is put into the page
_TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 2rem auto; max-width: 1060px;
       padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #d5dae1 }
h3 { font-size: 1rem; margin-bottom: .3rem }
table { border-collapse: collapse; margin: .6rem 0 } th, td { padding: .25rem .7rem; text-align: left;
        border-bottom: 1px solid #e4e8ee; vertical-align: top } td.number { text-align: right;
        font-variant-numeric: tabular-nums } .scroll { overflow-x: auto }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: .8rem }
svg { width: 100%; height: auto; background: #fafbfc; border: 1px solid #e4e8ee } svg text { font: 11px sans-serif;
      fill: #4a5462 } svg text.title { font-weight: 600; fill: #1c2430 } .grid { stroke: #e4e8ee }
img, video { max-width: 100%; image-rendering: pixelated } pre { background: #f4f6f8; padding: .8rem; overflow-x: auto }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em } .note { color: #9a3412 }
"""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run directory holds for people."""

    name: str
    folder: Path
    experiment: AnyExperiment
    curves: Mapping[str, Mapping[str, Any]]  # stage -> columns of its metrics
    samples: Mapping[str, tuple[Path, ...]]  # stage -> newest sheet and film
    pictures: tuple[Path, ...]  # made of the whole cascade
    scores: tuple[Score, ...]  # of metrics.json
    real: tuple[Score, ...]
    digits: Mapping[str, Mapping[str, float]]  # rows of evaluation.json


def read_run(folder: Path, name: str) -> RunRecord:
    """What there is of a run; only its config has to be there. Raises `UserError` for files that are damaged."""
    experiment = read_config(folder)
    stages = [stage.name for stage in experiment.stages]
    curves = {stage: read_metrics(folder / stage) for stage in stages if (folder / stage / FILENAME).is_file()}
    samples = {stage: tuple(filter(None, (_newest(folder / stage / "samples", suffix) for suffix in (".png", ".mp4"))))
               for stage in stages}
    metrics, digits = (_json(folder / file) for file in ("metrics.json", "evaluation.json"))
    pictures = tuple(path for path in sorted(folder.glob("*")) if path.suffix in _TYPES and not path.name[0] == ".")
    try:
        scores, real = (tuple(map(Score.from_dict, metrics.get(key, ()))) for key in ("scores", "real"))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{folder / 'metrics.json'} is not a record of metrics ({error}); permitted: one written by "
                        "'vdm-jax evaluate --metrics'") from error
    return RunRecord(name, folder, experiment, curves, samples, pictures, scores, real, digits.get("scores", {}))


def page(runs: Sequence[RunRecord]) -> str:
    """The page as HTML. Raises `UserError` for no runs and for names that are not told apart."""
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise UserError(f"runs {names} for a report; permitted: one or more, with names of their own")
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    title = html.escape("vdm_jax: " + ", ".join(names))
    sections = [_overview(runs, colours), _curves(runs, colours), _scores(runs), _digits(runs), _samples(runs),
                _configs(runs)]
    return "\n".join([
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>", f"<h1>{title}</h1>", *filter(None, sections),
        "</body></html>", ""])


def _overview(runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    rows = []
    for run in runs:
        key = f'<span class="key" style="background:{colours[run.name]}"></span>{html.escape(run.name)}'
        stages = "<br>".join(html.escape(f"{stage.name} {stage.video}") for stage in run.experiment.stages)
        steps = "<br>".join(str(int(run.curves[stage.name]["step"][-1])) if stage.name in run.curves
                            and len(run.curves[stage.name]["step"]) else "-" for stage in run.experiment.stages)
        rows.append([key, html.escape(run.experiment.name), html.escape(type(run.experiment.data).__name__), stages,
                     steps])
    return "<h2>Runs</h2>" + _table(("run", "experiment", "data", "stages", "steps"), rows)


def _curves(runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    parts = []
    for stage in dict.fromkeys(name for run in runs for name in run.curves):
        columns = {run.name: run.curves[stage] for run in runs if stage in run.curves}
        names = dict.fromkeys(name for column in columns.values() for name in column if name not in ("step", "time"))
        lines = {name: {run: (column["step"], column[name]) for run, column in columns.items() if name in column}
                 for name in sorted(names, key=lambda name: ("loss" not in name, name))}
        charts = [chart(name, of_runs, colours) for name, of_runs in lines.items()]
        parts.append(f'<h3>Stage {html.escape(stage)}, by step</h3><div class="curves">{"".join(charts)}</div>')
    return "<h2>Curves</h2>" + "".join(parts) if parts else ""


def _scores(runs: Sequence[RunRecord]) -> str:
    parts = []
    for title, kind in (("Scores", "scores"), ("The same measures of real clips", "real")):
        found = {run.name: {score.label: score for score in getattr(run, kind)} for run in runs}
        labels = list(dict.fromkeys(label for scores in found.values() for label in scores))
        if not labels:
            continue
        rows = [[html.escape(label), *_cells([found[run.name].get(label) for run in runs])] for label in labels]
        parts.append(f"<h2>{title}</h2>" + _table(("metric", *(html.escape(run.name) for run in runs)), rows))
        for run in runs:
            details = "\n\n".join(_described(score) for score in found[run.name].values())
            parts.append(f"<details><summary>How the scores of {html.escape(run.name)} were made</summary>"
                         f"<pre>{html.escape(details)}</pre></details>" if details else "")
    return "".join(parts)


def _cells(scores: Sequence[Score | None]) -> list[str]:
    """Values of one metric, and why one cannot stand beside the first."""
    first, cells = next(score for score in scores if score is not None), []
    for score in scores:
        if score is None:
            cells.append("-")
            continue
        interval = f"<br>{score.interval.low:.4g} to {score.interval.high:.4g}" if score.interval else ""
        note = ""
        try:
            require_comparable(first, score)
        except UserError as error:
            reason = str(error).split("cannot be compared: ")[1].split("; permitted")[0]
            note = f'<br><span class="note">not comparable: {html.escape(reason)}</span>'
        cells.append(f"{score.value:.4g}{interval}{note}")
    return cells


def _described(score: Score) -> str:
    lines = [str(score), *(f"  {name}: {value}" for name, value in score.conditions.items())]
    lines += [f"  detector: {score.detector} (SHA-256 {score.detector_sha256})"] if score.detector else []
    return "\n".join([*lines, *(f"  off protocol: {text}" for text in score.deviations)])


def _digits(runs: Sequence[RunRecord]) -> str:
    rows, columns = [], ("count", "colour", "digit", "motion", "whole")
    for run in runs:
        for row, values in run.digits.items():
            shown = (f"{values.get(name, float('nan')):.2f}" for name in columns)
            rows.append([html.escape(run.name), html.escape(row), *shown])
    return "<h2>What captions ask for</h2>" + _table(("run", "videos", *columns), rows) if rows else ""


def _samples(runs: Sequence[RunRecord]) -> str:
    parts = []
    for run in runs:
        files = {f"stage {stage}": paths for stage, paths in run.samples.items() if paths}
        files |= {"cascade": run.pictures} if run.pictures else {}
        for where, paths in files.items():
            parts.append(f"<h3>{html.escape(run.name)}, {html.escape(where)}</h3>")
            parts += [_embedded(path) for path in paths]
    return "<h2>Samples</h2>" + "".join(parts) if parts else ""


def _embedded(path: Path) -> str:
    """A picture or video inside the page, or its place on disk where it is too large."""
    size = path.stat().st_size
    if size > LARGEST:
        return f'<p class="note">{html.escape(str(path))} is left out: {size / 2**20:.0f} MiB.</p>'
    kind = _TYPES[path.suffix]
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    name = html.escape(path.name)
    element = (f'<video controls loop muted playsinline src="{data}"></video>' if kind.startswith("video") else
               f'<img alt="{name}" src="{data}">')
    return f"<figure>{element}<figcaption>{name}</figcaption></figure>"


def _configs(runs: Sequence[RunRecord]) -> str:
    parts, first = [], runs[0]
    for run in runs[1:]:
        found = differences(to_data(first.experiment), to_data(run.experiment))
        rows = [[html.escape(field), *(html.escape(_short(value)) for value in values)] for field, *values in found]
        names = html.escape(first.name), html.escape(run.name)
        parts.append(_table(("field", *names), rows) if rows else f"<p>{names[0]} and {names[1]} have one config.</p>")
    for run in runs:
        parts.append(f"<details><summary>{html.escape(run.name)}</summary><pre>{html.escape(to_json(run.experiment))}"
                     "</pre></details>")
    return "<h2>Configs</h2>" + "".join(parts)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (f'<div class="scroll"><table><thead><tr>{"".join(f"<th>{cell}</th>" for cell in header)}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def _newest(folder: Path, suffix: str) -> Path | None:
    return max(folder.glob(f"step_*{suffix}"), key=lambda path: path.name, default=None)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); permitted: delete it, and evaluate again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}; permitted: an object written by 'vdm-jax evaluate'")
    return found
