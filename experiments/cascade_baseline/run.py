"""Train four kinds of cascade on captioned digits under one budget of FLOPs, score what they make, and extend videos.

Run:   python -m experiments.cascade_baseline.run --preset cpu       in the root of the repository; an hour or two
       python -m experiments.cascade_baseline.run --report           only tables and plot from the record
Needs: pip install 'vdm_jax[plots,metrics]'
An interrupted run goes on where it stopped: finished systems are recorded, others have checkpoints in
runs/cascade_baseline/.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax

import vdm_jax
from experiments.cascade_baseline.extension import compare
from experiments.cascade_baseline.report import write_report
from experiments.cascade_baseline.systems import SYSTEMS, Part, step_flops, within_budget
from experiments.exit_codes import exit_code
from vdm_jax.benchmark import machine
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.commands.train_command import train
from vdm_jax.evaluation.digits import evaluate_digits
from vdm_jax.planning.flops import METHOD

HERE = Path(__file__).parent
SHOWN = 6  # videos of a grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is trained and looked at."""

    budget: float  # training FLOPs of a system, over all of its stages
    scored_clips: int
    extended_clips: int  # of the comparison of guidance and replacement
    extended_frames: int = 64
    systems: tuple[str, ...] = tuple(SYSTEMS)


PRESETS = {"cpu": Preset(budget=48e12, scored_clips=96, extended_clips=16),
           "gpu": Preset(budget=2e15, scored_clips=256, extended_clips=64)}


def measure(preset: Preset, name: str, work: Path, results: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Train all parts of a system, generate, score, and write a grid and a video."""
    start, stages = time.perf_counter(), []
    for part in SYSTEMS[name](work):
        experiment = within_budget(part, preset.budget)
        train(experiment, [stage.name for stage in experiment.stages], work / part.name, None, quiet=quiet)
        stages += [stage_row(part, stage) for stage in experiment.stages]
    seconds = time.perf_counter() - start  # of this sitting, compilation included
    result = evaluate_digits(vdm_jax.load(work / part.name), count=preset.scored_clips, seed=0)
    shown = vdm_jax.generation.generator.Generated(
        result.captions[:SHOWN], {"last": result.videos[:SHOWN]}, {"last": 8.0})
    slug = name.lower().replace(" ", "_").replace("-", "_")
    pictures = [shown.save(results / f"{slug}.{suffix}").name for suffix in ("png", "gif")]
    return {"stages": stages, "train_seconds": round(seconds, 1), "scores": result.scores, "pictures": pictures}


def stage_row(part: Part, stage: Any) -> dict[str, Any]:
    """What a stage was given."""
    flops = step_flops(stage, part.experiment.data)
    return {"run": part.name, "stage": stage.name, "video": str(stage.video), "steps": stage.training.steps,
            "clips": stage.training.batch_size, "flops": flops * stage.training.steps}


def record(preset: Preset, path: Path, work: Path, *, fresh: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Measure what the record lacks; every finished system is written at once."""
    about = {"device": machine.describe(jax.devices()[0], len(jax.devices())), "versions": machine.versions(),
             "protocol": {**dataclasses.asdict(preset), "systems": list(preset.systems), "flops": METHOD,
                          "work": "AdamW with warm-up and cosine decay, EMA; same data, seed and budget"}}
    found = open_record(path, about, fresh=fresh)
    path.parent.mkdir(exist_ok=True)
    for i, name in enumerate(preset.systems):
        if name not in found["rows"]:
            print(f"system {i + 1}/{len(preset.systems)}: {name}", file=sys.stderr, flush=True)
            found["rows"][name] = measure(preset, name, work, path.parent, quiet=quiet)
            save(path, found)
    if "extension" not in found:
        print("extension by guidance and by replacement", file=sys.stderr, flush=True)
        found["extension"] = compare(vdm_jax.load(work / "vdm"), clips=preset.extended_clips,
                                     frames=preset.extended_frames, results=path.parent)
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
