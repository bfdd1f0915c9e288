"""Edits of real clips by the methods for image models: another colour, frame by frame with maps of the clip's edges.

Run:   python -m experiments.editing.image_methods
Needs: pip install 'vdm_jax[digits,metrics]'

The model is trained first (`image_model.py`), with checkpoints, and a row is written when it is there, so that an
interrupted run goes on. Captions, measures and their columns are those of `run.py`; frames are enlarged from 32x32 to
64x64 before they are measured. results/image_methods.json is the record; `report.py` puts it into README.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import UInt8

from experiments.control_digits.measures import enlarged
from experiments.editing import image_model
from experiments.editing.run import (
    FOLDER,
    NO_EDIT,
    clips_of,
    describe_machine,
    edited_captions,
    forget_functions,
    measured,
    read,
    with_cost,
    with_row,
)
from experiments.exit_codes import exit_code
from vdm_jax.configuration import Count, Seed
from vdm_jax.digits.controls import draw_control
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.control_video import ControlVideo
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.null_text import NullText
from vdm_jax.generation.editing.rerender import Rerender
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.editing.text2video_zero import Text2VideoZero
from vdm_jax.generation.generator import Generator
from vdm_jax.video.writing import atomic_path

RECORD = FOLDER / "results" / "image_methods.json"
ANEW = "each frame anew, by its edges"
SIDE = 64  # pixels of what is measured
STEPS = 20  # of the sampler
SMOOTH = (8, 7)  # of these, counted from the end; published: (20, 19) of 50
METHODS: dict[str, Any] = {
    "sdedit 0.7": SDEdit(strength=0.7),
    "ddim": DDIMInversion(),
    "null_text": NullText(iterations=5),
    "text2video_zero": Text2VideoZero(),
    "controlvideo, not smoothed": ControlVideo(smooth=()),
    "controlvideo": ControlVideo(smooth=SMOOTH),
    "controlvideo, hierarchical": ControlVideo(smooth=SMOOTH, hierarchical=True),
    "rerender": Rerender(),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure the methods for image models on test clips of one digit."""

    run: Path = Path("runs/image_digits")  # of the model
    clips: Count = 16
    methods: tuple[str, ...] = (NO_EDIT, ANEW, *METHODS)
    seed: Seed = 0
    quiet: bool = False
    out: Path = RECORD


def made_by(generator: Generator, method: str, videos: Any, maps: Any, source: list[str], target: list[str],
            seed: int) -> UInt8[np.ndarray, "N T H W 3"]:
    """The clips that a method makes."""
    if method == NO_EDIT:
        return videos
    if method == ANEW:
        return generator(target, seed=seed, steps=STEPS, control=maps).videos
    done = [edit(generator, videos[i : i + 1], target[i : i + 1], source_captions=source[i : i + 1], seed=seed,
                 method=METHODS[method], first_index=i, steps=STEPS, control=maps[i : i + 1]).videos
            for i in range(len(videos))]
    return np.concatenate(done)


def rows(options: Run, generator: Generator) -> Iterator[dict[str, Any]]:
    """A row for each method that is not there yet. Raises `UserError` for a method that is none."""
    if unknown := [name for name in options.methods if name not in (NO_EDIT, ANEW, *METHODS)]:
        raise UserError(f"methods={unknown[0]!r}; permitted: {', '.join((NO_EDIT, ANEW, *METHODS))}",
                        "image_methods.methods")
    data, there = generator.experiment.data.data, read(options.out)
    clips = clips_of(data, options.clips)
    videos, maps = np.stack([clip.video for clip in clips]), np.stack([draw_control(clip, "edges") for clip in clips])
    source, target = [clip.caption for clip in clips], edited_captions(clips, "colour", options.seed)
    scorer = DigitScorer(dataclasses.replace(data, size=SIDE))
    for method in options.methods:
        named = {"edit": "colour", "method": method, "clips": options.clips, "model": options.run.name,
                 "seed": options.seed}
        if any(named.items() <= row.items() for row in there):
            continue
        forget_functions()
        fresh = Generator(generator.experiment, generator.params, encoder=generator.encoder)
        made, used = with_cost(made_by, fresh, method, videos, maps, source, target, options.seed)
        yield named | measured(scorer, enlarged(made, SIDE), enlarged(videos, SIDE), target) | used | describe_machine()


def main(options: Run, **changes: Any) -> None:
    """Measure what is missing and write it row by row; `changes` are those of the model."""
    for row in rows(options, image_model.trained_model(options.run, quiet=options.quiet, **changes)):
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(with_row(read(options.out), row), indent=1) + "\n")
        print({name: value for name, value in row.items() if name not in ("machine", "versions")}, flush=True)


if __name__ == "__main__":
    sys.exit(exit_code("editing", lambda: main(tyro.cli(Run, description=__doc__))))
