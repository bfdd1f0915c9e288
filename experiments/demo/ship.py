"""Put the weights of a run into the package: exported in float16, scored as they are there, with a manifest.

Run:  python -m experiments.demo.ship RUN NAME --command "vdm-jax train NAME" [--count 256]
      in the root of the repository; vdm_jax/shipped/NAME is made anew, and shipped.gif next to this file
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from experiments.demo.record import processor
from vdm_jax.commands.main import main as vdm_jax_command
from vdm_jax.evaluation.digits import evaluate_digits
from vdm_jax.runs.directory import load, read_cascade
from vdm_jax.runs.listing import CARD
from vdm_jax.runs.model_card import exported_steps
from vdm_jax.runs.shipped import SHIPPED, write_manifest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CAPTIONS = ("a red 3 moving left", "a green seven bouncing", "a blue 0 rising", "a yellow one standing still")


def ship(run: Path, name: str, command: str, count: int) -> Path:
    """Export, score what was exported, and write the manifest; the folder that was there before goes last."""
    experiment = read_cascade(run)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        vdm_jax_command(["export", str(run), str(made), "--dtype", "float16", "--licence", "Apache-2.0"])
        generator = load(made)
        result = evaluate_digits(generator, count=count, seed=0)
        card = made / CARD
        card.write_text(card.read_text().replace(str(made), name).replace("None on record.", result.table().strip()))
        write_manifest(made, {
            "name": name, "command": command, "commit": commit.strip(), "date": datetime.date.today().isoformat(),
            "machine": processor(), "cores": os.cpu_count(), "steps": exported_steps(run, experiment),
            "planned_steps": {stage.name: stage.training.steps for stage in experiment.stages},
            "stages_trained": list(generator.params), "dtype": "float16", **result.to_dict()})
        target = SHIPPED / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)
    print(result.table())
    captions = [caption for caption in CAPTIONS for _ in range(2)]
    load(target)(captions, seed=0).save(HERE / "shipped.gif")
    return target


def main() -> None:
    """Ship the run that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--command", required=True, help="by which the run was trained")
    parser.add_argument("--count", type=int, default=256, help="test captions to score")
    options = parser.parse_args()
    print(json.dumps(str(ship(options.run, options.name, options.command, options.count))))


if __name__ == "__main__":
    main()
