"""One page of what is known of runs: configs, curves, samples, scores, side by side. It is a single HTML file that
opens from disk: pictures and videos are inside it, there are no scripts, and its policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import dataclasses
import json
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
from vdm_jax.reports.curves import COLOURS, chart, require_packages
from vdm_jax.reports.scores import Cell, Table, digits_table, reconstruction_table, score_table, step_tables
from vdm_jax.runs.directory import differences, read_config
from vdm_jax.runs.records import EVALUATION, FILENAME
from vdm_jax.runs.records import read_metrics as read_columns
from vdm_jax.stages.autoencoding import AnyExperiment

TEMPLATE = Path(__file__).with_name("page.html")
LARGEST = 12 * 2**20  # bytes of a picture or video that is put into the page
TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}
_LEFT_OUT = ("step", "time", "seconds_remaining")  # of the curves
MOST_GRIDS = 12  # steps of a stage whose grids and videos are in the page, the newest among them
LABELS = {"loss": "training loss", "x_mse": "squared error of the clean video, training",
          "clips_per_second": "speed (clips per second)", "steps_per_second": "speed (steps per second)",
          "auxiliary_loss": "loss of the network's own, training",
          "gradient_norm": "gradient norm before clipping", "skipped": "skipped steps (gradient not finite)"}
DIGITS = {"whole": "whole captions", "count": "number of digits", "colour": "colours", "digit": "digits",
          "motion": "motions"}
_REAL = f"{EVALUATION}real/"

ByStep = Mapping[str, Mapping[int, RunMetrics]]  # stage -> step -> scores


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run directory holds for people."""

    name: str
    folder: Path
    experiment: AnyExperiment
    curves: Mapping[str, Mapping[str, Any]]  # stage -> columns of its metrics
    samples: Mapping[str, Mapping[int, tuple[Path, ...]]]  # stage -> step -> grid and video
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
        samples={stage: _grids(folder / stage / "samples") for stage in stages},
        pictures=tuple(path for path in sorted(folder.glob("*")) if path.suffix in TYPES and path.name[0] != "."),
        metrics=read_metrics(read_record(folder / "metrics.json"), folder / "metrics.json"),
        training={stage: _by_step(folder / stage / FOLDER, "training") for stage in stages},
        checkpoints={stage: _by_step(folder / stage / FOLDER, "checkpoint") for stage in stages},
        digits=read_record(folder / "evaluation.json").get("scores", {}),
        reconstructions={stage: read_record(folder / stage / RECORD) for stage in stages})


def page(runs: Sequence[RunRecord]) -> str:
    """The page as HTML. Raises `UserError` for no runs, for names that are not distinct, and where matplotlib or
    Jinja2 is not installed."""
    require_packages()
    from jinja2 import Environment, StrictUndefined

    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise UserError(f"runs {names} for a report; permitted: one or more, with names of their own")
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    metrics = {run.name: run.metrics for run in runs}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        title="vdm_jax: " + ", ".join(names), colours=colours, overview=list(map(_overview, runs)),
        samples=_samples(runs), curves=_curves(runs, colours), differences=_differences(runs),
        configs=[(run.name, to_json(run.experiment)) for run in runs],
        scores=[("Scores", score_table(metrics, "scores")),
                ("The same measures of real clips", score_table(metrics, "real")),
                ("Scores of checkpoints", step_tables({run.name: run.checkpoints for run in runs})),
                ("Scores while training", step_tables({run.name: run.training for run in runs})),
                ("What captions ask for", digits_table({run.name: run.digits for run in runs})),
                ("What autoencoders give back", reconstruction_table({r.name: r.reconstructions for r in runs}))])


def _overview(run: RunRecord) -> tuple[str | Cell, ...]:
    """Name, experiment, data, stages and their steps."""
    stages = [f"{stage.name} {stage.video}" for stage in run.experiment.stages]
    steps = [str(int(run.curves[stage.name]["step"][-1])) if stage.name in run.curves
             and len(run.curves[stage.name]["step"]) else "-" for stage in run.experiment.stages]
    data = "-" if run.experiment.data is None else type(run.experiment.data).__name__
    return run.name, run.experiment.name, data, Cell(stages), Cell(steps)


def _curves(runs: Sequence[RunRecord], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of each stage: groups of charts, and the curves that never change in words."""
    found = []
    for stage in dict.fromkeys(stage.name for run in runs for stage in run.experiment.stages):
        columns = {run.name: run.curves[stage] for run in runs if stage in run.curves}
        names = dict.fromkeys(name for found in columns.values() for name in found if name not in _LEFT_OUT)
        lines = {name: {run: (found["step"], found[name]) for run, found in columns.items() if name in found}
                 for name in sorted(names, key=lambda name: ("loss" not in name, name))}
        measured = {name: of_runs for name, of_runs in lines.items() if not name.startswith(EVALUATION)}
        moving = {name: of_runs for name, of_runs in measured.items() if not _constants(of_runs)}
        scored = {name: of_runs for name, of_runs in lines.items()
                  if name.startswith(EVALUATION) and not name.startswith(_REAL)}
        kept, real = (_by_score({run.name: run.checkpoints.get(stage, {}) for run in runs}, kind)
                      for kind in ("scores", "real"))
        groups = [
            ("", [(label(name), of_runs, {}) for name, of_runs in moving.items()]),
            (", scores while training (real clips dashed)",
             [(label(name.removeprefix(EVALUATION)), of_runs, lines.get(name.replace(EVALUATION, _REAL, 1), {}))
              for name, of_runs in scored.items()]),
            (", scores of checkpoints (real clips dashed)",
             [(name, of_runs, real.get(name, {})) for name, of_runs in kept.items()])]
        found.append({
            "stage": stage, "groups": [(title, _charts(group, colours)) for title, group in groups],
            "constant": "; ".join(f"{label(name)} {', '.join(_constants(of_runs))}"
                                  for name, of_runs in measured.items() if name not in moving)})
    return [one for one in found if one["constant"] or any(charts for _, charts in one["groups"])]


def _charts(group: Sequence[tuple[str, Any, Any]], colours: Mapping[str, str]) -> list[tuple[str, str]]:
    """Title and picture of the curves of a group that have something to draw."""
    drawn = [(title, chart(title, of_runs, colours, dashed)) for title, of_runs, dashed in group]
    return [(title, _inside("image/svg+xml", svg.encode())) for title, svg in drawn if svg]


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


def _by_score(found: Mapping[str, Mapping[int, RunMetrics]], kind: str
              ) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Scores of checkpoints as lines over steps, by metric and run."""
    lines: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for run, steps in found.items():
        for step in sorted(steps):
            for score in getattr(steps[step], kind):
                places = lines.setdefault(score.label, {}).setdefault(run, ([], []))
                places[0].append(step)
                places[1].append(score.value)
    return lines


def _samples(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Sheets and videos of each stage, the newest step first, and pictures of the whole cascade."""
    parts = []
    for run in runs:
        for stage, steps in run.samples.items():
            if steps:
                parts.append({"title": f"{run.name}, stage {stage}", **_by_age(steps)})
        if run.pictures:
            parts.append({"title": f"{run.name}, cascade", "left_out": 0,
                          "steps": [(None, list(map(_media, run.pictures)))]})
    return parts


def _by_age(steps: Mapping[int, tuple[Path, ...]]) -> dict[str, Any]:
    """Grids and videos of some steps, the newest first, and how many steps are left out."""
    places = np.unique(np.linspace(0, len(steps) - 1, min(MOST_GRIDS, len(steps))).round().astype(int))
    chosen = [sorted(steps)[place] for place in places][::-1]
    return {"steps": [(step, list(map(_media, steps[step]))) for step in chosen], "left_out": len(steps) - len(chosen)}


def _media(path: Path) -> dict[str, str]:
    """A picture or video inside the page, or its place on disk where it is too large."""
    size = path.stat().st_size
    if size > LARGEST:
        return {"name": str(path), "data": "", "mib": f"{size / 2**20:.0f}"}
    kind = TYPES[path.suffix]
    return {"name": path.name, "kind": kind, "data": _inside(kind, path.read_bytes())}


def _inside(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _differences(runs: Sequence[RunRecord]) -> list[tuple[str, Table | None]]:
    """How each further run's config differs from the first one's: a sentence where it does not, else a table."""
    found, first = [], runs[0]
    for run in runs[1:]:
        fields = differences(to_data(first.experiment), to_data(run.experiment))
        rows = [[field, *map(_short, values)] for field, *values in fields]
        found.append(("", Table(("field", first.name, run.name), rows)) if rows else
                     (f"{first.name} and {run.name} have one config.", None))
    return found


def _short(value: Any) -> str:
    """JSON data as one short line."""
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _grids(folder: Path) -> dict[int, tuple[Path, ...]]:
    """Grid and video by step."""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("step_*"), key=lambda path: (path.suffix != ".png", path.name)):
        if path.suffix in TYPES and (step := re.fullmatch(r"step_(\d+)", path.stem)):
            found.setdefault(int(step[1]), []).append(path)
    return {step: tuple(paths) for step, paths in found.items()}


def _by_step(folder: Path, kind: str) -> dict[int, RunMetrics]:
    """The records `KIND_STEP.json` of a folder."""
    found = {path: re.fullmatch(rf"{kind}_(\d+)", path.stem) for path in folder.glob(f"{kind}_*.json")}
    return {int(step[1]): read_metrics(read_record(path), path) for path, step in found.items() if step}
