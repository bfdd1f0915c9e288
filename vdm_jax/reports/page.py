"""One page of what is known of runs: configs, curves, samples, scores, side by side. It is a single HTML file that
opens from disk: pictures and videos are inside it, there are no scripts, and its policy forbids it to load anything.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.configuration import to_data, to_json
from vdm_jax.errors import UserError
from vdm_jax.evaluation.checkpoints import FOLDER, read_metrics, read_record
from vdm_jax.evaluation.reconstruction import RECORD
from vdm_jax.evaluation.run_metrics import RunMetrics
from vdm_jax.reports.curves import COLOURS, chart
from vdm_jax.reports.html import TYPES, embedded, folded, key, short, table
from vdm_jax.reports.scores import digits_table, reconstruction_table, score_tables, step_tables
from vdm_jax.runs.directory import differences, read_config
from vdm_jax.runs.records import EVALUATION, FILENAME
from vdm_jax.runs.records import read_metrics as read_columns
from vdm_jax.stages.autoencoding import AnyExperiment

_LEFT_OUT = ("step", "time", "seconds_remaining")  # of the curves
MOST_SHEETS = 12  # steps of a stage whose sheets and films are in the page, the newest among them
LABELS = {"loss": "training loss", "x_mse": "squared error of the clean video, training",
          "clips_per_second": "speed (clips per second)", "steps_per_second": "speed (steps per second)",
          "gradient_norm": "gradient norm before clipping", "skipped": "skipped steps (gradient not finite)"}
DIGITS = {"whole": "whole captions", "count": "number of digits", "colour": "colours", "digit": "digits",
          "motion": "motions"}
_REAL = f"{EVALUATION}real/"
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 2rem auto; max-width: 1060px;
       padding: 0 1rem }
h1 { font-size: 1.6rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #d5dae1 }
h3 { font-size: 1rem; margin-bottom: .3rem }
table { border-collapse: collapse; margin: .6rem 0 } th, td { padding: .25rem .7rem; text-align: left;
        border-bottom: 1px solid #e4e8ee; vertical-align: top;
        overflow-wrap: anywhere } td.number { text-align: right;
        font-variant-numeric: tabular-nums } .scroll { overflow-x: auto }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: .8rem }
svg { width: 100%; height: auto; background: #fafbfc; border: 1px solid #e4e8ee } svg text { font: 14px sans-serif;
      fill: #4a5462 } svg text.title { font-weight: 600; fill: #1c2430 } .grid { stroke: #e4e8ee }
figure { margin: .6rem 0 } img, video { max-width: 100%; image-rendering: pixelated }
video { min-width: 18rem } pre { background: #f4f6f8; padding: .8rem; overflow-x: auto }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em } .note { color: #9a3412 }
"""

ByStep = Mapping[str, Mapping[int, RunMetrics]]  # stage -> step -> scores


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run directory holds for people."""

    name: str
    folder: Path
    experiment: AnyExperiment
    curves: Mapping[str, Mapping[str, Any]]  # stage -> columns of its metrics
    samples: Mapping[str, Mapping[int, tuple[Path, ...]]]  # stage -> step -> sheet and film
    pictures: tuple[Path, ...]  # made of the whole cascade
    metrics: RunMetrics  # of metrics.json
    training: ByStep  # scores taken while the stage was trained
    checkpoints: ByStep  # scores of kept checkpoints, taken afterwards
    digits: Mapping[str, Mapping[str, float]]  # rows of evaluation.json
    reconstructions: Mapping[str, Mapping[str, Any]]  # of autoencoders, by stage


def read_run(folder: Path, name: str) -> RunRecord:
    """What there is of a run; only its config has to be there. Raises `UserError` for files that are damaged."""
    experiment = read_config(folder)
    stages = [stage.name for stage in experiment.stages]
    return RunRecord(
        name, folder, experiment,
        curves={stage: read_columns(folder / stage) for stage in stages if (folder / stage / FILENAME).is_file()},
        samples={stage: _sheets(folder / stage / "samples") for stage in stages},
        pictures=tuple(path for path in sorted(folder.glob("*")) if path.suffix in TYPES and path.name[0] != "."),
        metrics=read_metrics(read_record(folder / "metrics.json"), folder / "metrics.json"),
        training={stage: _by_step(folder / stage / FOLDER, "training") for stage in stages},
        checkpoints={stage: _by_step(folder / stage / FOLDER, "checkpoint") for stage in stages},
        digits=read_record(folder / "evaluation.json").get("scores", {}),
        reconstructions={stage: read_record(folder / stage / RECORD) for stage in stages})


def page(runs: Sequence[RunRecord]) -> str:
    """The page as HTML. Raises `UserError` for no runs and for names that are not told apart."""
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise UserError(f"runs {names} for a report; permitted: one or more, with names of their own")
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    title = html.escape("vdm_jax: " + ", ".join(names))
    sections = [
        _overview(runs, colours), _samples(runs), score_tables({run.name: run.metrics for run in runs}),
        step_tables("Scores of checkpoints", {run.name: run.checkpoints for run in runs}),
        step_tables("Scores while training", {run.name: run.training for run in runs}),
        digits_table({run.name: run.digits for run in runs}),
        reconstruction_table({run.name: run.reconstructions for run in runs}), _curves(runs, colours),
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
        stages = "<br>".join(html.escape(f"{stage.name} {stage.video}") for stage in run.experiment.stages)
        steps = "<br>".join(str(int(run.curves[stage.name]["step"][-1])) if stage.name in run.curves
                            and len(run.curves[stage.name]["step"]) else "-" for stage in run.experiment.stages)
        rows.append([key(run.name, colours[run.name]), html.escape(run.experiment.name),
                     html.escape(type(run.experiment.data).__name__) if run.experiment.data else "-", stages, steps])
    return "<h2>Runs</h2>" + table(("run", "experiment", "data", "stages", "steps"), rows)


def _curves(runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    parts = []
    for stage in dict.fromkeys(stage.name for run in runs for stage in run.experiment.stages):
        columns = {run.name: run.curves[stage] for run in runs if stage in run.curves}
        names = dict.fromkeys(name for found in columns.values() for name in found if name not in _LEFT_OUT)
        lines = {name: {run: (found["step"], found[name]) for run, found in columns.items() if name in found}
                 for name in sorted(names, key=lambda name: ("loss" not in name, name))}
        measured = {name: of_runs for name, of_runs in lines.items() if not name.startswith(EVALUATION)}
        moving = {name: of_runs for name, of_runs in measured.items() if not _constants(of_runs)}
        plain = [chart(label(name), of_runs, colours) for name, of_runs in moving.items()]
        scored = [chart(label(name.removeprefix(EVALUATION)), of_runs, colours,
                        lines.get(name.replace(EVALUATION, _REAL, 1), {}))
                  for name, of_runs in lines.items() if name.startswith(EVALUATION) and not name.startswith(_REAL)]
        kept = _checkpoint_charts({run.name: run.checkpoints.get(stage, {}) for run in runs}, colours)
        constant = "; ".join(f"{label(name)} {', '.join(_constants(of_runs))}" for name, of_runs in measured.items()
                             if name not in moving)
        for title, charts in (("", plain), (", scores while training (real clips dashed)", scored),
                              (", scores of checkpoints (real clips dashed)", kept)):
            if any(charts):
                parts.append(f'<h3>Stage {html.escape(stage)}{title}, by step</h3><div class="curves">'
                             f"{''.join(charts)}</div>")
        if constant:
            parts.append(f"<p>Stage {html.escape(stage)}, one value throughout: {html.escape(constant)}.</p>")
    legend = " ".join(key(run.name, colours[run.name]) for run in runs)
    return f"<h2>Curves</h2><p>{legend}</p>" + "".join(parts) if parts else ""


def label(name: str) -> str:
    """What a curve shows, with its unit, in words."""
    if name.startswith("digits/"):  # shares that the scorer of captioned digits gives
        return f"{DIGITS.get(name.removeprefix('digits/'), name)} right (share)"
    return LABELS.get(name, name.replace("_", " "))


def _constants(lines: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """The value of each run, where none of them ever changes; else nothing."""
    found = {}
    for run, (_, values) in lines.items():
        values = np.asarray(values, float)
        values = values[np.isfinite(values)]
        if len(values) and (values != values[0]).any():
            return []
        if len(values):
            found[run] = f"{values[0]:.4g}"
    return list(found.values()) if len(found) == 1 else [f"{value} ({run})" for run, value in found.items()]


def _checkpoint_charts(found: Mapping[str, Mapping[int, RunMetrics]], colours: Mapping[str, str]) -> list[str]:
    """A picture per metric: the scores of checkpoints by step."""
    def lines(kind: str) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
        lists: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
        for run, steps in found.items():
            for step in sorted(steps):
                for score in getattr(steps[step], kind):
                    places = lists.setdefault(score.label, {}).setdefault(run, ([], []))
                    places[0].append(step)
                    places[1].append(score.value)
        return lists

    real = lines("real")
    return [chart(label, of_runs, colours, real.get(label, {})) for label, of_runs in lines("scores").items()]


def _samples(runs: Sequence[RunRecord]) -> str:
    parts = []
    for run in runs:
        for stage, steps in run.samples.items():
            if steps:
                parts.append(f"<h3>{html.escape(run.name)}, stage {html.escape(stage)}</h3>{_by_age(steps)}")
        if run.pictures:
            parts.append(f"<h3>{html.escape(run.name)}, cascade</h3>" + "".join(map(embedded, run.pictures)))
    return "<h2>Samples</h2>" + "".join(parts) if parts else ""


def _by_age(steps: Mapping[int, tuple[Path, ...]]) -> str:
    """Sheets and films of the newest step, and of earlier ones under a line each."""
    all_steps = sorted(steps)
    places = np.unique(np.linspace(0, len(all_steps) - 1, min(MOST_SHEETS, len(all_steps))).round().astype(int))
    newest, *earlier = [all_steps[place] for place in places][::-1]
    parts = [f"<p>step {newest}</p>", *map(embedded, steps[newest])]
    parts += [folded(f"step {step}", "".join(map(embedded, steps[step]))) for step in earlier]
    if left := len(all_steps) - len(places):
        parts.append(f'<p class="note">{left} steps in between are left out.</p>')
    return "".join(parts)


def _configs(runs: Sequence[RunRecord]) -> str:
    parts, first = [], runs[0]
    for run in runs[1:]:
        found = differences(to_data(first.experiment), to_data(run.experiment))
        rows = [[html.escape(field), *(html.escape(short(value)) for value in values)] for field, *values in found]
        names = html.escape(first.name), html.escape(run.name)
        parts.append(table(("field", *names), rows) if rows else f"<p>{names[0]} and {names[1]} have one config.</p>")
    parts += [folded(run.name, f"<pre>{html.escape(to_json(run.experiment))}</pre>") for run in runs]
    return "<h2>Configs</h2>" + "".join(parts)


def _sheets(folder: Path) -> dict[int, tuple[Path, ...]]:
    """Sheet and film by step."""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("step_*"), key=lambda path: (path.suffix != ".png", path.name)):
        if path.suffix in TYPES and (step := re.fullmatch(r"step_(\d+)", path.stem)):
            found.setdefault(int(step[1]), []).append(path)
    return {step: tuple(paths) for step, paths in found.items()}


def _by_step(folder: Path, kind: str) -> dict[int, RunMetrics]:
    """The records `KIND_STEP.json` of a folder."""
    found = {path: re.fullmatch(rf"{kind}_(\d+)", path.stem) for path in folder.glob(f"{kind}_*.json")}
    return {int(step[1]): read_metrics(read_record(path), path) for path, step in found.items() if step}
