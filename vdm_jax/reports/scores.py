"""The scores on the page about runs: tables that say how each was made, and what cannot stand beside what."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.evaluation.run_metrics import RunMetrics
from vdm_jax.metrics.measures import ACCOMPANIED, COMPANIONS
from vdm_jax.metrics.scores import Score, require_comparable
from vdm_jax.reports.html import folded, table

_MOST_STEPS = 12  # rows of a run in a table of steps; the newest ones
COLUMNS = ("count", "colour", "digit", "motion", "whole")  # of captioned digits


def score_tables(found: Mapping[str, RunMetrics]) -> str:
    """Scores of runs by name, side by side, and of the real clips."""
    parts = []
    for title, kind in (("Scores", "scores"), ("The same measures of real clips", "real")):
        scores = {run: {score.label: score for score in getattr(metrics, kind)} for run, metrics in found.items()}
        labels = list(dict.fromkeys(label for of_run in scores.values() for label in of_run))
        if not labels:
            continue
        rows = [[html.escape(label), *_cells([of_run.get(label) for of_run in scores.values()])] for label in labels]
        parts.append(f"<h2>{title}</h2>" + table(("metric", *map(html.escape, scores)), rows))
        parts += [_alone(run, of_run.values()) for run, of_run in scores.items()]
        parts += [_made(f"How the scores of {run} were made", of_run.values()) for run, of_run in scores.items()]
    return "".join(parts)


def step_tables(title: str, found: Mapping[str, Mapping[str, Mapping[int, RunMetrics]]]) -> str:
    """Scores by run, stage and step: a table per stage, a row per run and step, and one of the real clips."""
    parts = []
    for stage in dict.fromkeys(stage for stages in found.values() for stage, steps in stages.items() if steps):
        of_runs = {run: stages[stage] for run, stages in found.items() if stages.get(stage)}
        newest = {run: steps[max(steps)] for run, steps in of_runs.items()}
        labels = list(dict.fromkeys(score.label for metrics in newest.values() for score in metrics.scores))
        rows = []
        for run, steps in of_runs.items():
            shown = sorted(steps)[-_MOST_STEPS:]
            rows += [[html.escape(run), str(step), *_values(steps[step].scores, labels)] for step in shown]
            if newest[run].real:
                rows.append([html.escape(run), "real clips", *_values(newest[run].real, labels)])
        parts.append(f"<h3>Stage {html.escape(stage)}</h3>" + table(("run", "step", *map(html.escape, labels)), rows))
        parts += _made_differently({run: metrics.scores for run, metrics in newest.items()})
        for run, metrics in newest.items():
            parts.append(_alone(run, metrics.scores))
            parts.append(_made(f"How those of {run} were made", metrics.scores))
    return f"<h2>{html.escape(title)}</h2>" + "".join(parts) if parts else ""


def _made_differently(found: Mapping[str, Sequence[Score]]) -> list[str]:
    """A line for each metric of a run that cannot stand beside that of the first run which has it."""
    first: dict[str, tuple[str, Score]] = {}
    lines = []
    for run, scores in found.items():
        for score in scores:
            other, one = first.setdefault(score.label, (run, score))
            if reason := _difference(one, score):
                lines.append(f'<p class="note">{html.escape(score.label)} of {html.escape(run)} and of '
                             f"{html.escape(other)} are not comparable: {html.escape(reason)}.</p>")
    return lines


def _difference(one: Score, other: Score) -> str:
    """Why two scores cannot be compared; nothing where they can."""
    try:
        require_comparable(one, other)
    except UserError as error:
        return str(error).split("cannot be compared: ")[1].split("; permitted")[0]
    return ""


def digits_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Rows of `evaluation.json` by run."""
    rows = []
    for run, of_run in found.items():
        for row, values in of_run.items():
            shown = (f"{values.get(name, float('nan')):.2f}" for name in COLUMNS)
            rows.append([html.escape(run), html.escape(row), *shown])
    return "<h2>What captions ask for</h2>" + table(("run", "videos", *COLUMNS), rows) if rows else ""


def reconstruction_table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """What trained autoencoders give back, by run and stage: rows of `reconstruction.json`."""
    records = [(run, stage, record) for run, stages in found.items() for stage, record in stages.items() if record]
    names = list(dict.fromkeys(name for _, _, record in records for name in record["scores"]))
    rows = [[html.escape(run), html.escape(stage), str(record["clips"]),
             *(f"{float(record['scores'][name]):.4g}" if name in record["scores"] else "-" for name in names),
             f"{record['scale']:.4g}", f"{record['shift']:.4g}"] for run, stage, record in records]
    header = ("run", "stage", "clips", *map(html.escape, names), "latent scale", "latent shift")
    return "<h2>What autoencoders give back</h2>" + table(header, rows) if rows else ""


def _values(scores: Sequence[Score], labels: Sequence[str]) -> list[str]:
    found = {score.label: score for score in scores}
    return [f"{found[label].value:.4g}" if label in found else "-" for label in labels]


def _cells(scores: Sequence[Score | None]) -> list[str]:
    """Values of one metric, and why one cannot stand beside the first."""
    first, cells = next(score for score in scores if score is not None), []
    for score in scores:
        if score is None:
            cells.append("-")
            continue
        interval = f"<br>{score.interval.low:.4g} to {score.interval.high:.4g}" if score.interval else ""
        reason = _difference(first, score)
        note = f'<br><span class="note">not comparable: {html.escape(reason)}</span>' if reason else ""
        cells.append(f"{score.value:.4g}{interval}{note}")
    return cells


def _alone(run: str, scores: Sequence[Score]) -> str:
    """A warning where a distance of features stands without the measures that hear broken motion."""
    names = {score.metric for score in scores}
    missing = [name for name in COMPANIONS if name not in names]
    if not missing or not names & set(ACCOMPANIED):
        return ""
    distance = ", ".join(sorted(names & set(ACCOMPANIED)))
    return (f'<p class="note">{html.escape(run)}: {distance} hardly notices frozen or shuffled frames, and '
            f"{' and '.join(missing)}, which do, are missing: --metrics {' '.join(missing)}.</p>")


def _made(title: str, scores: Sequence[Score]) -> str:
    details = "\n\n".join(_described(score) for score in scores)
    return folded(title, f"<pre>{html.escape(details)}</pre>") if details else ""


def _described(score: Score) -> str:
    lines = [str(score), *(f"  {name}: {value}" for name, value in score.conditions.items())]
    lines += [f"  detector: {score.detector} (SHA-256 {score.detector_sha256})"] if score.detector else []
    return "\n".join([*lines, *(f"  off protocol: {text}" for text in score.deviations)])
