"""Scores of trained models on Stochastic Moving MNIST, 5 -> 10: FVD against training FLOPs, and against sampling steps.

Run:  python -m experiments.smmnist.models runs/smmnist_one_stage runs/smmnist_cascade
      python -m experiments.smmnist.models runs/smmnist_one_stage --steps 4 8 16 32 --checkpoints newest

Every checkpoint of a run's last stage that is there is measured, in the cascade that ends with it. Training keeps few,
so give the command again while it goes on: what is recorded in results/models.json is not measured again, and
checkpoints that are gone stay in the record.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from experiments.cascade_baseline.systems import step_flops
from experiments.smmnist.run import FOLDER, PROTOCOL
from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.configuration import digest
from vdm_jax.data.opening import open_source
from vdm_jax.evaluation.checkpoints import Kept, generator_at, kept_checkpoints
from vdm_jax.evaluation.run_metrics import evaluate_run
from vdm_jax.evaluation.settings import MetricSettings
from vdm_jax.runs.directory import read_cascade, stage_checkpoints


@dataclasses.dataclass(frozen=True)
class Models:
    """Measure the checkpoints of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    steps: tuple[int, ...] = (0,)  # sampler steps of every stage; 0: each stage's own
    trajectories: int = 1  # of each clip; the protocol has 10
    checkpoints: Literal["all", "newest"] = "all"
    out: Path = FOLDER / "results" / "models.json"
    fresh: bool = False  # forget the record


def main() -> None:
    """Entry of the script."""
    options = tyro.cli(Models)
    record = open_record(options.out, fresh=options.fresh, about={
        "device": describe(jax.devices()[0], 1), "versions": versions(),
        "protocol": {"name": PROTOCOL.name, "clips": PROTOCOL.real_clips, "seed": 0}})
    for run in options.runs:
        last = read_cascade(run).stages[-1].name
        there = kept_checkpoints(run, [last], damaged="skip")
        for kept in there[-1:] if options.checkpoints == "newest" else there:
            for steps in options.steps:
                measure(run, kept, steps, options, record)


def measure(run: Path, kept: Kept, steps: int, options: Models, record: dict[str, Any]) -> None:
    """One row of the record, unless it is there."""
    experiment = read_cascade(run)
    sampling = "/".join(str(steps or stage.sampling.steps) for stage in experiment.stages)
    name = f"{experiment.name}, {kept}, {sampling} sampling steps, {options.trajectories} trajectories"
    if name in record["rows"]:
        return
    start, trained = time.perf_counter(), trained_steps(run, kept)
    settings = MetricSettings(metrics=(*PROTOCOL.metrics, "motion"), count=PROTOCOL.real_clips, given_frames=5,
                              samples_per_clip=options.trajectories, protocol=PROTOCOL.name, steps=steps or None,
                              resamples=0)
    found = evaluate_run(generator_at(run, experiment, kept, "skip"), open_source(experiment.data, "test"), settings,
                         run / "metrics", real_folder=run.parent / "real")
    work = sum(count * step_flops(experiment.stage(stage), experiment.data) for stage, count in trained.items())
    record["rows"][name] = {
        "experiment": experiment.name, "stages": digest(experiment.stages), "trained_steps": trained,
        "train_tflop": work / 1e12, "sampling_steps": sampling, "trajectories": options.trajectories,
        "seconds": round(time.perf_counter() - start, 1), "command": " ".join(["python -m experiments.smmnist.models",
                                                                               *sys.argv[1:]]),
        "scores": {score.metric: score.to_dict() for score in found.scores},
        "real": {score.metric: score.to_dict() for score in found.real}}
    save(options.out, record)
    print(name, f"FVD {record['rows'][name]['scores']['fvd']['value']:.2f}", file=sys.stderr, flush=True)


def trained_steps(run: Path, kept: Kept) -> dict[str, int]:
    """How long each stage was trained: that of the checkpoint until it, the others until their newest one."""
    stages = [stage.name for stage in read_cascade(run).stages]
    return {name: kept.step if name == kept.stage else stage_checkpoints(run, name).steps()[-1] for name in stages}


if __name__ == "__main__":
    main()
