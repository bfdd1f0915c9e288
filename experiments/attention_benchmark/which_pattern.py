"""Which pattern is worth it: the same small model with each pattern, trained for the same number of FLOPs.

FLOPs are mask-aware: they count the pairs of tokens that a pattern shows, whatever a kernel computes, so a pattern that
shows less is trained for more steps. After training, validation loss along the way, the scores of generated videos and
the memory of a train step are recorded.

Run:   python -m experiments.attention_benchmark.which_pattern --preset cpu     in the root of the repository
       python -m experiments.attention_benchmark.which_pattern --report         only table and plot from the record
Needs: pip install 'vdm_jax[plots]'
An interrupted run goes on where it stopped: finished patterns are recorded, the one in training has checkpoints in
runs/which_pattern/.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vdm_jax
from experiments.attention_benchmark.variants import VARIANTS, cost, with_patterns
from experiments.attention_benchmark.which_pattern_report import write_report
from vdm_jax.benchmark import machine
from vdm_jax.benchmark.cases import label
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.train_command import train
from vdm_jax.conditions.vocabulary import Vocabulary
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.errors import UserError
from vdm_jax.evaluation.digits import evaluate_digits
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import checkpoints_path, read_config
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.training.loop import device_batch
from vdm_jax.training.state import abstract_state
from vdm_jax.training.step import compile_validation, train_step

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is trained and looked at."""

    config: str = "attention_digits"
    stage: str = "base"
    variants: tuple[str, ...] = tuple(VARIANTS)
    steps: int = 500  # of full attention; its FLOPs are everybody's budget
    points: int = 5  # validation losses along the way
    validation_clips: int = 256
    scored_clips: int = 96
    sampling_steps: int = 16


PRESETS = {"cpu": Preset()}


def experiment_of(preset: Preset, variant: str) -> tuple[Experiment, dict[str, Any]]:
    """The experiment that trains a variant, and what it costs. The learning rate is constant after its warm-up, so that
    losses along the way compare."""
    config = load_config(preset.config)
    base = config.stage(preset.stage)
    patterns = VARIANTS[variant]
    batch = base.training.batch_size
    budget = preset.steps * batch * cost(base, VARIANTS["full"]).training
    price = cost(base, patterns)
    steps = max(1, int(budget // (batch * price.training)))
    every = math.ceil(steps / preset.points)
    training = dataclasses.replace(base.training, steps=steps, decay=False, checkpoint_every=every,
                                   keep=preset.points + 1, validate_every=0, sample_every=0, log_every=min(25, steps))
    stage = dataclasses.replace(with_patterns(base, patterns), training=training)
    about = {"patterns": [label(pattern) for pattern in patterns], "steps": steps, "batch": batch,
             "flops_per_step": batch * price.training, "forward_flops_per_clip": price.forward,
             "attention_share": round(price.attention / price.forward, 4)}
    return dataclasses.replace(config, stages=(stage,)), about


def measure(preset: Preset, variant: str, run: Path, data_dir: Path | None = None, *, quiet: bool = False) -> dict:
    """Train a variant to the end of its budget and look at it."""
    experiment, about = experiment_of(preset, variant)
    start = time.perf_counter()
    train(experiment, [preset.stage], run, data_dir, quiet=quiet)
    seconds = time.perf_counter() - start  # of this sitting, compilation included
    experiment = read_config(run)  # with its vocabulary
    stage = experiment.stage(preset.stage)
    generator = vdm_jax.load(run)
    result = evaluate_digits(generator, count=preset.scored_clips, seed=0, steps=preset.sampling_steps)
    return {**about, "parameters": sum(x.size for x in jax.tree.leaves(generator.params[stage.name])),
            "train_step_bytes": train_step_bytes(experiment, stage, data_dir), "train_seconds": round(seconds, 1),
            "curve": curve(preset, experiment, stage, run, about["flops_per_step"], data_dir),
            "scores": result.scores}


def pipeline(experiment: Experiment, stage: Stage, split: str, size: int, data_dir: Path | None) -> Pipeline:
    """Clips of a split with their captions as tokens."""
    text = stage.network.text
    return Pipeline(open_source(experiment.data, split, data_dir), batch_size=size, seed=experiment.seed,
                    tokenize=Vocabulary(text.words, text.length).encode)


def curve(preset: Preset, experiment: Experiment, stage: Stage, run: Path, flops: float,
          data_dir: Path | None) -> list[dict[str, float]]:
    """Loss of the averaged parameters at every checkpoint, on the same validation clips with the same noise."""
    mesh = make_mesh(experiment.mesh)
    size = min(32, preset.validation_clips)
    clips = pipeline(experiment, stage, "validation", size, data_dir)
    batches = [device_batch(clips.batch(i), mesh) for i in range(preset.validation_clips // size)]
    keys = jax.random.split(jax.random.key(0), len(batches))
    loss = compile_validation(stage, mesh)
    abstract = abstract_state(stage, mesh).ema
    found = []
    with Checkpoints(checkpoints_path(run, stage.name), keep=preset.points + 1) as checkpoints:
        for step in checkpoints.steps():
            params, _ = checkpoints.restore_subtree("ema", abstract, step)
            losses = [float(loss(params, batch, key)) for batch, key in zip(batches, keys, strict=True)]
            found.append({"step": step, "flops": step * flops, "validation_loss": float(np.mean(losses))})
    return found


def train_step_bytes(experiment: Experiment, stage: Stage, data_dir: Path | None) -> int:
    """Memory of the compiled train step: arguments, outputs that are not donated, and temporaries."""
    mesh = make_mesh(experiment.mesh)
    batch = pipeline(experiment, stage, "train", stage.training.batch_size, data_dir).batch(0)
    with jax.set_mesh(mesh):
        step = jax.jit(lambda state, batch: train_step(stage, state, batch), donate_argnums=0,
                       compiler_options=compiler_options(mesh))
        stats = step.lower(abstract_state(stage, mesh), device_batch(batch, mesh)).compile().memory_analysis()
    return int(stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
               - stats.alias_size_in_bytes)


def record(preset: Preset, path: Path, work: Path, *, fresh: bool = False, data_dir: Path | None = None,
           quiet: bool = False) -> dict[str, Any]:
    """Measure the variants that the record lacks; every finished one is written at once."""
    device = jax.devices()[0]
    about = {"device": machine.describe(device, len(jax.devices())), "versions": machine.versions(),
             "protocol": {**dataclasses.asdict(preset), "variants": list(preset.variants),
                          "work": "AdamW, constant learning rate, EMA; same seed, data and batch for every pattern",
                          "flops": "2 per multiply-add in convolutions and matrix products, forward and backward; "
                                   "attention counts the pairs that the mask shows"}}
    found = open_record(path, about, fresh=fresh)
    for i, variant in enumerate(preset.variants):
        if variant in found["rows"]:
            continue
        if not quiet:
            print(f"pattern {i + 1}/{len(preset.variants)}: {variant}", file=sys.stderr, flush=True)
        folder = "".join(c if c.isalnum() else "_" for c in variant)
        found["rows"][variant] = measure(preset, variant, work / folder, data_dir, quiet=quiet)
        save(path, found)
    return found


def main() -> int:
    """Train, record and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="what to measure")
    parser.add_argument("--report", action="store_true", help="only table and plot from the record")
    parser.add_argument("--fresh", action="store_true", help="forget the record (runs are kept; delete them yourself)")
    args = parser.parse_args()
    if bool(args.preset) == args.report:
        parser.error("give either --preset or --report")
    path = HERE / "results" / "which_pattern.json"
    try:
        require_matplotlib()
        if args.preset:
            record(PRESETS[args.preset], path, Path("runs/which_pattern"), fresh=args.fresh)
        write_report(path, HERE / "README.md")
    except UserError as error:
        print(f"which_pattern: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"which_pattern: {str(stop) or 'stopped; the same command goes on'}", file=sys.stderr)
        return 130
    print(HERE / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
