"""Train four kinds of cascade on captioned digits under one budget of FLOPs, each from several seeds, and score what
they make.

Run:   python -m experiments.cascade_baseline.run --preset cpu       in the root of the repository; two hours of a core
       python -m experiments.cascade_baseline.run --report           only tables and plot from the record
Needs: pip install 'vdm_jax[plots]'
An interrupted run goes on where it stopped: finished systems are recorded, others have checkpoints in
runs/cascade_baseline/. Systems that begin as image networks begin as the same ones, which are trained once a seed and
counted in the budget of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import jax

import vdm_jax
from experiments.cascade_baseline.report import write_report
from experiments.cascade_baseline.systems import SYSTEMS, Part, step_flops, within_budget
from experiments.exit_codes import exit_code
from vdm_jax.benchmark import machine
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.commands.train_command import train
from vdm_jax.evaluation.digits import evaluate_digits
from vdm_jax.generation.generator import Generated
from vdm_jax.planning.flops import METHOD

HERE = Path(__file__).parent
SHOWN = 6  # videos of a grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is trained and looked at."""

    budget: float  # training FLOPs of a system, over all of its stages
    scored_clips: int
    seeds: tuple[int, ...] = (0, 1)
    systems: tuple[str, ...] = tuple(SYSTEMS)


PRESETS = {"cpu": Preset(budget=50e12, scored_clips=256), "gpu": Preset(budget=2e15, scored_clips=256)}


def measure(preset: Preset, name: str, seed: int, work: Path, results: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Train all parts of a system in `work`, generate, score, and for the first seed write a grid and a video."""
    start, stages = time.perf_counter(), []
    for part in SYSTEMS[name](work):
        experiment = dataclasses.replace(within_budget(part, preset.budget), seed=seed)
        train(experiment, [stage.name for stage in experiment.stages], work / part.name, None, quiet=quiet)
        stages += [stage_row(part, stage) for stage in experiment.stages]
    seconds = time.perf_counter() - start  # of this sitting, compilation included
    result = evaluate_digits(vdm_jax.load(work / part.name), count=preset.scored_clips, seed=seed)
    found = {"system": name, "seed": seed, "stages": stages, "train_seconds": round(seconds, 1),
             "scores": result.scores}
    if seed == preset.seeds[0]:
        shown = Generated(result.captions[:SHOWN], {"last": result.videos[:SHOWN]}, {"last": 8.0})
        slug = name.lower().replace(" ", "_").replace("-", "_")
        found["pictures"] = [shown.save(results / f"{slug}.{suffix}").name for suffix in ("png", "gif")]
    return found


def stage_row(part: Part, stage: Any) -> dict[str, Any]:
    """What a stage was given."""
    flops = step_flops(stage, part.experiment.data)
    return {"run": part.name, "stage": stage.name, "video": str(stage.video), "steps": stage.training.steps,
            "clips": stage.training.batch_size, "flops": flops * stage.training.steps}


def record(preset: Preset, path: Path, work: Path, *, fresh: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Measure what the record lacks; every finished system is written at once."""
    about = {"device": machine.describe(jax.devices()[0], len(jax.devices())), "versions": machine.versions(),
             "protocol": {**dataclasses.asdict(preset), "systems": list(preset.systems), "seeds": list(preset.seeds),
                          "flops": METHOD,
                          "work": "AdamW with warm-up and cosine decay, EMA; same data, seeds and budget"}}
    found = open_record(path, about, fresh=fresh)
    path.parent.mkdir(exist_ok=True)
    for seed, name in itertools.product(preset.seeds, preset.systems):
        key = f"{name}, seed {seed}"
        if key not in found["rows"]:
            print(key, file=sys.stderr, flush=True)
            found["rows"][key] = measure(preset, name, seed, work / f"seed_{seed}", path.parent, quiet=quiet)
            save(path, found)
    return found


def main() -> int:
    """Train, record and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="what to measure")
    parser.add_argument("--report", action="store_true", help="only tables and plot from the record")
    parser.add_argument("--fresh", action="store_true", help="forget the record (runs are kept; delete them yourself)")
    args = parser.parse_args()
    if bool(args.preset) == args.report:
        parser.error("give either --preset or --report")

    def work() -> None:
        require_matplotlib()
        for name in PRESETS if args.report else (args.preset,):
            path = HERE / "results" / f"{name}.json"
            if args.preset:
                record(PRESETS[name], path, Path("runs/cascade_baseline") / name, fresh=args.fresh)
            write_report(path, HERE / "README.md")
        print(HERE / "README.md")

    return exit_code("cascade_baseline", work)


if __name__ == "__main__":
    sys.exit(main())
