"""Bits per dimension of MNIST by a small image model, as a check of the code of likelihoods.

Run:  vdm-jax train mnist_pictures --run RUN && python -m experiments.metrics.bits RUN

The first test pictures, by the probability-flow ODE, as `vdm-jax evaluate --metrics bits_per_dim` measures them.
results/mnist_bits.json is the record, and the table of README.md is made of it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.configuration import Count, CountOrZero, Seed
from vdm_jax.data.opening import open_source
from vdm_jax.evaluation.likelihood import measure_bits
from vdm_jax.runs.directory import load
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
PUBLISHED = {"Residual Flow": 0.97, "RNODE": 0.97, "i-ResNet": 1.06}


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure bits per dimension of a trained `mnist_pictures`."""

    run: tyro.conf.Positional[Path]
    count: Count = 256  # first test pictures
    steps: Count = 64  # of the ODE's solver
    seed: Seed = 0
    before: CountOrZero = 0  # steps of the run that the training began as (`Training.init_from`)
    out: Path = FOLDER / "results" / "mnist_bits.json"


def measured(options: Run) -> dict[str, Any]:
    """What the record says."""
    generator, began = load(options.run), time.process_time()
    stage, = generator.experiment.stages
    score, = measure_bits(generator, open_source(generator.experiment.data, "test", None), count=options.count,
                          seed=options.seed, steps=options.steps)
    logged = [json.loads(line) for line in (options.run / stage.name / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in logged if "validation_loss" in row]
    return {"score": score.to_dict(), "train_steps": [options.before, logged[-1]["step"]],
            "batch": stage.training.batch_size, "train_seed": generator.experiment.seed,
            "validation_loss": losses[-1] if losses else None,
            "cpu_seconds": round(time.process_time() - began), "machine": describe(jax.devices()[0], 1),
            "versions": versions(), "date": time.strftime("%Y-%m-%d")}


def table(record: dict[str, Any]) -> str:
    """A line for each model."""
    score = record["score"]
    steps = " + ".join(str(count) for count in record["train_steps"] if count)
    low, high = (score["interval"][side] for side in ("low", "high"))
    lines = ["| model | bits per dimension |", "|---|---:|",
             f"| `mnist_pictures`, {steps} steps of {record['batch']} "
             f"| {score['value']:.2f} ({low:.2f} to {high:.2f}) |"]
    lines += [f"| {name}, published | {bits:.2f} |" for name, bits in PUBLISHED.items()]
    said = score["conditions"]
    return "\n".join([*lines, "", f"Ours: the first {said['clips']} test pictures (95 % interval over pictures), "
                      f"{said['density']}, {said['solver']}'s method of {said['steps']} steps, "
                      f"{said['dequantisation']} dequantisation, one training. {record['machine']['kind']}; "
                      f"jax {record['versions']['jax']}; {record['date']}."])


def main(options: Run, page: Path = FOLDER / "README.md") -> None:
    """Measure, write the record, and put the table into the page."""
    record = measured(options)
    with atomic_path(options.out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    page.write_text(insert(page.read_text(), "bits", table(record)))
    print(table(record))


if __name__ == "__main__":
    sys.exit(exit_code("bits", lambda: main(tyro.cli(Run, description=__doc__))))
