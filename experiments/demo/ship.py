"""Put the weights of a run into the package: exported in float16, scored as they are there, with a manifest.

A run may go on from what the package has of it (`continued.py`): steps of both trainings count.

Run:  python -m experiments.demo.ship RUN NAME --command "vdm-jax train NAME" [--count 256]
      in the root of the repository; vdm_jax/shipped/NAME is made anew, and shipped.gif next to this file
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from experiments.demo.record import processor
from vdm_jax.commands.configs import load_config
from vdm_jax.errors import UserError
from vdm_jax.evaluation.digits import evaluate_digits
from vdm_jax.runs.directory import export, load, read_cascade
from vdm_jax.runs.listing import CARD, WEIGHTS
from vdm_jax.runs.model_card import exported_steps, model_card
from vdm_jax.runs.shipped import SHIPPED, read_manifest, write_manifest
from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.stage import Experiment, Stage

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BEGAN = "shipped_before.json"  # in a run: steps of the weights in the package when it was first shipped
CAPTIONS = ("a red 3 moving left", "a green seven bouncing", "a blue 0 rising", "a yellow one standing still",
            "a red five moving right and a cyan 2 falling", "a white 8 bouncing and a blue three rising",
            "a magenta 6 standing still and a green 4 moving left", "a yellow seven rising and a red 9 standing still")


def ship(run: Path, name: str, command: str, count: int) -> Path:
    """Export, score what was exported, and write the manifest; the folder that was there before goes last."""
    experiment, steps = as_shipped(read_cascade(run), name), all_steps(run, name)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    trained = load(run)
    parameters = {stage: sum(leaf.size for leaf in jax.tree.leaves(tree)) for stage, tree in trained.params.items()}
    use = f'vdm-jax sample {name} "a caption" --out video.mp4'
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        export(trained.of(experiment), made, "float16")
        generator = load(made)
        result = evaluate_digits(generator, count=count, seed=0)
        (made / CARD).write_text(model_card(generator.experiment, parameters, steps, use, {"Digits": result.table()},
                                            "Apache-2.0"))
        write_manifest(made, {
            "name": name, "command": command, "commit": commit.strip(), "date": datetime.date.today().isoformat(),
            "machine": processor(), "cores": os.cpu_count(), "steps": steps,
            "planned_steps": {stage.name: stage.training.steps for stage in experiment.stages},
            "stages_trained": list(generator.params), "dtype": "float16", **result.to_dict()})
        target = SHIPPED / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)
    print(result.table())
    load(target)(CAPTIONS, seed=0).save(HERE / "shipped.gif")
    return target


def as_shipped(experiment: Experiment, name: str) -> Experiment:
    """A run that goes on from the package as the config of that name: stages that began as what ships begin as the
    config says. Raises `UserError` where there is no such config."""
    if not any(goes_on(stage, name) for stage in experiment.stages):
        return experiment
    config = load_config(name)
    return dataclasses.replace(experiment, stages=tuple(dataclasses.replace(stage, training=dataclasses.replace(
        stage.training, init_from=config.stage(stage.name).training.init_from)) if goes_on(stage, name) else stage
        for stage in experiment.stages))


def goes_on(stage: Stage, name: str) -> bool:
    """Whether a stage began as the one that ships under a name."""
    return stage.training.init_from == InitFrom(stage=stage.name, run=name)


def all_steps(run: Path, name: str) -> dict[str, int]:
    """Steps for which each stage was trained, with those of the weights in the package as which it began, or of which
    it is a copy. What those had is kept in the run, since the package then has the run's."""
    experiment, kept = read_cascade(run), run / BEGAN
    if not kept.exists():
        before = read_manifest(SHIPPED / name)["steps"] if (SHIPPED / name).exists() else {}
        kept.write_text(json.dumps(before))
    before, found = json.loads(kept.read_text()), exported_steps(run, experiment)
    for stage in experiment.stages:
        copied = (run / stage.name / WEIGHTS).exists()
        if stage.name in before and (copied or (stage.name in found and goes_on(stage, name))):
            found[stage.name] = found.get(stage.name, 0) + before[stage.name]
    return {stage.name: found[stage.name] for stage in experiment.stages if stage.name in found}


def main() -> None:
    """Ship the run that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--command", required=True, help="by which the run was trained")
    parser.add_argument("--count", type=int, default=256, help="test captions to score")
    options = parser.parse_args()
    try:
        print(json.dumps(str(ship(options.run, options.name, options.command, options.count))))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
