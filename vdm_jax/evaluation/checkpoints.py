"""Evaluation of a run's kept checkpoints: how scores went with training, by stage.

A checkpoint of a stage is measured in the cascade that ends with that stage, the stages before it as they are now.
Every record is written when it is there and not made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.digits.scorer import COLUMNS
from vdm_jax.errors import UserError
from vdm_jax.evaluation.digits import Evaluation
from vdm_jax.evaluation.run_metrics import RunMetrics
from vdm_jax.generation.generator import Generator
from vdm_jax.metrics.scores import Score
from vdm_jax.runs.directory import checkpoints_path, load_autoencoders, load_stage, read_cascade, stage_checkpoints
from vdm_jax.runs.manifest import MANIFEST, Damaged
from vdm_jax.runs.records import json_ready
from vdm_jax.stages.stage import Experiment
from vdm_jax.video.writing import atomic_path

FOLDER = "evaluation"  # of records, in that of their stage


@dataclasses.dataclass(frozen=True)
class Kept:
    """A checkpoint of a stage."""

    stage: str
    step: int

    def record(self, folder: Path) -> Path:
        """Where its scores are, in the folder of a run or another one."""
        return folder / self.stage / FOLDER / f"checkpoint_{self.step:07d}.json"

    def __str__(self) -> str:
        return f"{self.stage} {self.step}"


def kept_checkpoints(run: Path, stages: Sequence[str] = (), steps: Sequence[int] = (), damaged: Damaged = "refuse",
                     note: Callable[[str], None] = lambda text: None) -> tuple[Kept, ...]:
    """The checkpoints of stages (all by default) at steps (all by default), oldest first.

    Raises `UserError` for unknown stages, steps that no stage has, a run without checkpoints, and damaged ones, which
    `damaged="skip"` leaves out with a note.
    """
    experiment, found, there = read_cascade(run), [], {}
    for name in stages or [stage.name for stage in experiment.stages]:
        checkpoints = stage_checkpoints(run, experiment.stage(name).name)
        there[name] = checkpoints.steps()
        for step in (step for step in there[name] if not steps or step in steps):
            try:
                checkpoints.meta(step)
            except UserError as error:
                if damaged == "refuse":
                    raise
                note(f"left out: {error}")
                continue
            found.append(Kept(name, step))
    listed = "; ".join(f"{name}: {', '.join(map(str, of)) or 'none'}" for name, of in there.items())
    absent = [step for step in steps if not any(step in of for of in there.values())]
    if absent or not found:
        asked = f"step {absent[0]}" if absent else "a checkpoint"
        raise UserError(f"run {run} has not {asked}; permitted: {listed} (training keeps training.keep of them)")
    return tuple(found)


def generator_at(run: Path, experiment: Experiment, kept: Kept, damaged: Damaged = "refuse") -> Generator:
    """The cascade up to the checkpoint's stage. Raises `UserError` where a stage before it is not trained."""
    place = [stage.name for stage in experiment.stages].index(kept.stage)
    shorter = dataclasses.replace(experiment, stages=experiment.stages[: place + 1])
    params = {stage.name: load_stage(run, stage, damaged, kept.step if stage.name == kept.stage else None)
              for stage in shorter.stages}
    trained = {name: tree for name, tree in params.items() if tree is not None}
    return Generator(shorter, trained, autoencoders=load_autoencoders(shorter, run, trained))


def evaluate_checkpoints(
    run: Path, kept: Sequence[Kept], measure: Callable[[Kept, Generator], RunMetrics], folder: Path, *,
    asked: Mapping[str, Any], damaged: Damaged = "refuse", note: Callable[[str], None] = lambda text: None,
) -> dict[Kept, RunMetrics]:
    """Measure checkpoints, one after the other, and write the record of each below `folder`.

    Args:
      run: whose checkpoints they are.
      kept: of `kept_checkpoints`.
      measure: the scores of a cascade.
      asked: all that decides about `measure`, as JSON data. A record made by the same is read instead of made again.
    """
    experiment, results = read_cascade(run), {}
    for one in kept:
        manifest = checkpoints_path(run, one.stage) / str(one.step) / MANIFEST
        wanted = json.loads(json.dumps({**asked, "checkpoint": hashlib.sha256(manifest.read_bytes()).hexdigest()}))
        path = one.record(folder)
        if (record := read_record(path)) and record.get("asked") == wanted:
            note(f"{one}: already measured")
        else:
            found = measure(one, generator_at(run, experiment, one, damaged))
            record = json_ready(found.to_dict() | {"asked": wanted})
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        results[one] = read_metrics(record, path)
    return results


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none. Raises `UserError` for other content."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); permitted: delete it, and evaluate again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}; permitted: an object written by 'vdm-jax evaluate'")
    return found


def read_metrics(record: Mapping[str, Any], path: Path) -> RunMetrics:
    """The scores of a record that `RunMetrics.to_dict` gave. Raises `UserError` naming the file for other data."""
    try:
        scores, real = (tuple(map(Score.from_dict, record.get(key, ()))) for key in ("scores", "real"))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a record of metrics ({error}); permitted: one written by "
                        "'vdm-jax evaluate --metrics'") from error
    return RunMetrics(scores=scores, real=real, settings=record.get("settings", {}))


def read_digits(record: Mapping[str, Any], path: Path) -> Evaluation:
    """The evaluation of a record that `Evaluation.to_dict` gave, without its videos. Raises `UserError` naming the file
    for other data."""
    scores, protocol = record.get("scores"), record.get("protocol", {})
    rows = list(scores.values()) if isinstance(scores, dict) else [None]
    numbers = all(isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
                  for row in rows)
    if not numbers or not isinstance(protocol, dict):
        raise UserError(f"{path} is not a record of digits; permitted: one written by 'vdm-jax evaluate'")
    return Evaluation(scores, protocol, np.zeros((0,), np.uint8), ())


def digit_metrics(found: Evaluation) -> RunMetrics:
    """An evaluation of captioned digits as scores: of generated videos, and of real ones, their ceiling."""
    def scores(row: str) -> tuple[Score, ...]:
        return tuple(Score(metric=f"digits/{name}", value=found.scores[row][name], better="higher",
                           conditions=found.protocol) for name in COLUMNS)

    return RunMetrics(scores=scores("generated"), real=scores("real clips (ceiling)"), settings=found.protocol)


def table(results: Mapping[Kept, RunMetrics]) -> str:
    """Markdown: a table per stage, a row per checkpoint and one of the real clips."""
    lines = []
    for stage in dict.fromkeys(kept.stage for kept in results):
        rows = {kept.step: found for kept, found in results.items() if kept.stage == stage}
        labels = list(dict.fromkeys(score.label for found in rows.values() for score in found.scores))
        lines += [f"| {stage}, step | {' | '.join(labels)} |", "|---|" + "---:|" * len(labels)]
        of_real = {score.label: score for score in list(rows.values())[-1].real}
        for name, scores in [*((str(step), {s.label: s for s in found.scores}) for step, found in rows.items()),
                             *([("real clips", of_real)] if of_real else [])]:
            cells = (f"{scores[label].value:.4g}" if label in scores else "-" for label in labels)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
