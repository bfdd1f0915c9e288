"""The scores on the page about runs: tables that say how each was made, and what cannot stand next to what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vdm_jax.digits.scorer import COLUMNS
from vdm_jax.errors import UserError
from vdm_jax.evaluation.run_metrics import RunMetrics
from vdm_jax.metrics.measures import ACCOMPANIED, COMPANIONS
from vdm_jax.metrics.scores import Score, require_comparable

_MOST_STEPS = 12  # rows of a run in a table of steps; the newest ones


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of several lines, or with a warning under them."""

    lines: Sequence[str]
    note: str = ""


@dataclasses.dataclass
class Table:
    """A table, warnings under it, and texts under lines that open them."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    notes: list[str] = dataclasses.field(default_factory=list)
    folded: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def score_table(found: Mapping[str, RunMetrics], kind: str) -> list[tuple[str, Table]]:
    """Scores of runs by name, side by side: of their videos (`kind` "scores") or of the real clips ("real")."""
    scores = {run: {score.label: score for score in getattr(metrics, kind)} for run, metrics in found.items()}
    labels = list(dict.fromkeys(label for of_run in scores.values() for label in of_run))
    rows = [[label, *_cells([of_run.get(label) for of_run in scores.values()])] for label in labels]
    table = Table(("metric", *scores), rows)
    for run, of_run in scores.items():
        table.notes += _alone(run, list(of_run.values()))
        table.folded += _made(f"How the scores of {run} were made", list(of_run.values()))
    return [("", table)] if labels else []


def step_tables(found: Mapping[str, Mapping[str, Mapping[int, RunMetrics]]]) -> list[tuple[str, Table]]:
    """Scores by run, stage and step: a table per stage, a row per run and step, and one of the real clips."""
    tables = []
    for stage in dict.fromkeys(stage for stages in found.values() for stage, steps in stages.items() if steps):
        of_runs = {run: stages[stage] for run, stages in found.items() if stages.get(stage)}
        newest = {run: steps[max(steps)] for run, steps in of_runs.items()}
        labels = list(dict.fromkeys(score.label for metrics in newest.values() for score in metrics.scores))
        rows = []
        for run, steps in of_runs.items():
            rows += [[run, str(step), *_values(steps[step].scores, labels)] for step in sorted(steps)[-_MOST_STEPS:]]
            if newest[run].real:
                rows.append([run, "real clips", *_values(newest[run].real, labels)])
        table = Table(("run", "step", *labels), rows,
                      _made_differently({run: metrics.scores for run, metrics in newest.items()}))
        for run, metrics in newest.items():
            table.notes += _alone(run, metrics.scores)
            table.folded += _made(f"How those of {run} were made", metrics.scores)
        tables.append((f"Stage {stage}", table))
    return tables


def _made_differently(found: Mapping[str, Sequence[Score]]) -> list[str]:
    """A line for each metric of a run that cannot stand next to that of the first run which has it."""
    first: dict[str, tuple[str, Score]] = {}
    lines = []
    for run, scores in found.items():
        for score in scores:
            other, one = first.setdefault(score.label, (run, score))
            if reason := _difference(one, score):
                lines.append(f"{score.label} of {run} and of {other} are not comparable: {reason}.")
    return lines


def _difference(one: Score, other: Score) -> str:
    """Why two scores cannot be compared; nothing where they can."""
    try:
        require_comparable(one, other)
    except UserError as error:
        return str(error).split("cannot be compared: ")[1].split("; permitted")[0]
    return ""


def digits_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[tuple[str, Table]]:
    """Rows of `evaluation.json` by run."""
    rows = [[run, row, *(f"{values.get(name, float('nan')):.2f}" for name in COLUMNS)]
            for run, of_run in found.items() for row, values in of_run.items()]
    return [("", Table(("run", "videos", *COLUMNS), rows))] if rows else []


def reconstruction_table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, Table]]:
    """What trained autoencoders give back, by run and stage: rows of `reconstruction.json`."""
    records = [(run, stage, record) for run, stages in found.items() for stage, record in stages.items() if record]
    names = list(dict.fromkeys(name for _, _, record in records for name in record["scores"]))
    rows = [[run, stage, str(record["clips"]),
             *(f"{float(record['scores'][name]):.4g}" if name in record["scores"] else "-" for name in names),
             f"{record['scale']:.4g}", f"{record['shift']:.4g}"] for run, stage, record in records]
    return [("", Table(("run", "stage", "clips", *names, "latent scale", "latent shift"), rows))] if rows else []


def _values(scores: Sequence[Score], labels: Sequence[str]) -> list[str]:
    found = {score.label: score for score in scores}
    return [f"{found[label].value:.4g}" if label in found else "-" for label in labels]


def _cells(scores: Sequence[Score | None]) -> list[str | Cell]:
    """Values of one metric, and why one cannot stand next to the first."""
    first, cells = next(score for score in scores if score is not None), []
    for score in scores:
        if score is None:
            cells.append("-")
            continue
        interval = [f"{score.interval.low:.4g} to {score.interval.high:.4g}"] if score.interval else []
        reason = _difference(first, score)
        cells.append(Cell([f"{score.value:.4g}", *interval], f"not comparable: {reason}" if reason else ""))
    return cells


def _alone(run: str, scores: Sequence[Score]) -> list[str]:
    """A warning where a distance of features stands without the measures that hear broken motion."""
    names = {score.metric for score in scores}
    missing = [name for name in COMPANIONS if name not in names]
    if not missing or not names & set(ACCOMPANIED):
        return []
    distance = ", ".join(sorted(names & set(ACCOMPANIED)))
    return [f"{run}: {distance} hardly notices frozen or shuffled frames, and {' and '.join(missing)}, which do, are "
            f"missing: --metrics {' '.join(missing)}."]


def _made(title: str, scores: Sequence[Score]) -> list[tuple[str, str]]:
    return [(title, "\n\n".join(map(_described, scores)))] if scores else []


def _described(score: Score) -> str:
    lines = [str(score), *(f"  {name}: {value}" for name, value in score.conditions.items())]
    lines += [f"  detector: {score.detector} (SHA-256 {score.detector_sha256})"] if score.detector else []
    return "\n".join([*lines, *(f"  off protocol: {text}" for text in score.deviations)])
