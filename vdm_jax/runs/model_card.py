"""The model card of exported weights: what they are, from what data, how good, under what licence.

The form follows Mitchell et al. 2019, "Model cards for model reporting" (arXiv 1810.03993). Only what is on record
stands here; what is not says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm_jax.configuration import digest
from vdm_jax.runs.directory import stage_checkpoints
from vdm_jax.runs.listing import WEIGHTS
from vdm_jax.stages.autoencoding import AnyExperiment
from vdm_jax.versions import versions


def exported_steps(run: Path, experiment: AnyExperiment, damaged: str = "refuse") -> dict[str, int]:
    """Steps for which the weights that `load_stage` reads were trained, by stage. Stages that have only weights, of a
    folder exported before, and those that are not trained are not named."""
    found = {}
    for stage in experiment.stages:
        if (run / stage.name / WEIGHTS).exists():
            continue
        checkpoints = stage_checkpoints(run, stage.name)
        step = checkpoints.newest_intact() if damaged == "skip" and checkpoints.steps() else checkpoints.latest()
        if step is not None:
            found[stage.name] = step
    return found


def model_card(experiment: AnyExperiment, parameters: Mapping[str, int], steps: Mapping[str, int], use: str,
               scores: Mapping[str, str], licence: str | None = None) -> str:
    """The card as Markdown.

    Args:
      experiment: the config as it is exported.
      parameters: of the exported stages, by name.
      steps: of training of the exported weights, by stage; stages without are "not recorded".
      use: the command that uses the weights.
      scores: Markdown of each record of evaluation, by title.
      licence: of the weights.
    """
    rows = []
    for stage in experiment.stages:
        if stage.name in parameters:
            training = stage.training
            trained = f"{steps[stage.name]} of {training.steps}" if stage.name in steps else "not recorded"
            rows.append(f"| {stage.name} | {stage.video} | {type(stage.network).__name__} | "
                        f"{parameters[stage.name]:,} | {trained} | {training.batch_size} |")
    taken = "Scores on record in the run, of the weights that it had when they were taken.\n\n"
    sections = [f"### {title}\n\n{text.strip()}\n" for title, text in scores.items()]
    return "\n".join([
        f"# {experiment.name}", "", "Exported by `vdm-jax export`; the weights are averages (EMA) over training.", "",
        "## Stages", "", "| stage | frames x height x width | network | parameters | training steps | clips per step |",
        "|---|---|---|---:|---:|---:|", *rows, "",
        "## Data", "", f"{_described(experiment.data)}.", "",
        "## Scores", "", taken + "\n".join(sections) if sections else "None on record.\n",
        "## Use", "", f"```\n{use}\n```", "",
        "## Licence", "", licence or "Not stated.", "",
        "## Made with", "", ", ".join(f"{name} {version}" for name, version in versions().items()) + ".", "",
        f"Digest of the config: `{digest(experiment)}`", ""])


def _described(data: Any) -> str:
    """A data set by its class and the values of its fields."""
    if data is None:
        return "Of a released model; not stated"
    values = (f"{field.name}={getattr(data, field.name)!r}" for field in dataclasses.fields(data))
    return f"`{type(data).__name__}({', '.join(values)})`"
