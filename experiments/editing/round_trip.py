"""Round trips: how closely inverted test clips come back, with their own captions and without guidance.

Run:  python -m experiments.editing.round_trip [captioned_digits_full]

What is lost on the way there and back, an edit from the same noise loses too. Each stage is measured alone, conditioned
on the given clip in the size of the stage before, and the last one also after all the others. "Last step alone" adds
the noise of the sampler's last step to a clip and makes that step: how much one prediction of the network loses. A row
is written when it is there, so an interrupted run goes on; other weights of the same model are measured anew.
results/round_trip.json is the record, and the table of README.md is made of it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.control_digits.measures import with_interval
from experiments.editing.run import FOLDER, clips_of, describe_machine, read
from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from vdm_jax.configuration import Count
from vdm_jax.digits.clips import DigitClip
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.methods import EditMethod
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.long_video.frames import request_key
from vdm_jax.generation.long_video.sampling import weights_of
from vdm_jax.metrics.frames import psnr
from vdm_jax.runs.directory import load
from vdm_jax.video.writing import atomic_path

GOAL, GOAL_STEPS = 35.0, 50  # dB, at so many steps
GOAL_WAY = "inverted, 3 refinements"
TOGETHER = "all stages"
WAYS: dict[str, Callable[[int], EditMethod]] = {  # by the sampler's steps
    "last step alone": lambda steps: SDEdit(strength=min(1.0, 1.5 / steps)),
    "inverted, no refinements": lambda steps: DDIMInversion(refinements=0),
    GOAL_WAY: lambda steps: DDIMInversion(refinements=3),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure how closely test clips of one digit come back."""

    model: tyro.conf.Positional[str] = "captioned_digits_full"
    clips: Count = 8
    steps: tuple[Count, ...] = (32, 50)  # of the sampler, of every stage
    ways: tuple[str, ...] = tuple(WAYS)
    out: Path = FOLDER / "results" / "round_trip.json"


def measured(generator: Generator, clips: Sequence[DigitClip], method: EditMethod, steps: int
             ) -> dict[str, list[float]]:
    """PSNR of each clip in dB, by stage."""
    videos, captions = np.stack([clip.video for clip in clips]), [clip.caption for clip in clips]
    made = edit(generator, videos, captions, source_captions=captions, method=method, steps=steps, guidance=0.0,
                round_trip=True)
    found = made.round_trip | {TOGETHER: psnr(made.videos, videos)}
    return {name: [round(float(value), 2) for value in values] for name, values in found.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each number of steps and way, and whether the stages reach the goal."""
    names = list(rows[0]["psnr"])
    lines = [f"| steps | way | {' | '.join(names)} |", "|---:|---|" + "---:|" * len(names)]
    for row in rows:
        cells = [shown(row["psnr"][name]) for name in names]
        lines.append(f"| {row['steps']} | {row['way']} | {' | '.join(cells)} |")
    lines += ["", f"Mean PSNR of {rows[0]['clips']} clips in dB, with 95 % intervals (Student's t)."]
    return "\n".join(lines + [verdict(row) for row in rows if (row["steps"], row["way"]) == (GOAL_STEPS, GOAL_WAY)])


def shown(values: Sequence[float]) -> str:
    """A mean with half of its interval, where several clips have one."""
    found = with_interval(np.array(values))
    return f"{found['mean']:.1f}" + ("" if np.isnan(found["half"]) else f" ± {found['half']:.1f}")


def verdict(row: dict[str, Any]) -> str:
    """Which stages reach the goal, and which do not."""
    means = {name: float(np.mean(values)) for name, values in row["psnr"].items()}
    groups = (("reached by", [name for name in means if means[name] >= GOAL]),
              ("missed by", [name for name in means if means[name] < GOAL]))
    said = [f"{does} {', '.join(f'{name} ({means[name]:.1f} dB)' for name in names)}"
            for does, names in groups if names]
    return f"The goal, {GOAL:g} dB at {row['steps']} steps, is {'; '.join(said)}."


def main(options: Run, page: Path = FOLDER / "README.md") -> None:
    """Measure what is missing, row by row, and put the table into the page. Raises `UserError` for a way that is none.
    """
    if unknown := [way for way in options.ways if way not in WAYS]:
        raise UserError(f"ways={unknown[0]!r}; permitted: {', '.join(WAYS)}", "round_trip.ways")
    generator = load(options.model)
    clips = clips_of(generator.experiment.data, options.clips)
    weights = request_key((), (), weights_of(generator, generator.stages()))[:12]
    for steps in options.steps:
        for way in options.ways:
            named = {"model": options.model, "weights": weights, "clips": options.clips, "steps": steps, "way": way}
            there = read(options.out)
            if any(named.items() <= row.items() for row in there):
                continue
            row = named | {"psnr": measured(generator, clips, WAYS[way](steps), steps)} | describe_machine()
            kept = [other for other in there if other["model"] != options.model or other["weights"] == weights]
            rows = sorted([*kept, row], key=lambda row: (row["model"], row["clips"], row["steps"], [*WAYS].index(
                row["way"])))
            with atomic_path(options.out) as temporary:
                temporary.write_text(json.dumps(rows, indent=1) + "\n")
            print(steps, way, row["psnr"], flush=True)
    own = {"model": options.model, "weights": weights, "clips": options.clips}
    page.write_text(insert(page.read_text(), "round_trip", table([
        row for row in read(options.out) if own.items() <= row.items()])))


if __name__ == "__main__":
    sys.exit(exit_code("editing", lambda: main(tyro.cli(Run, description=__doc__))))
