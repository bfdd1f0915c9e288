"""Memory of ControlVideo's hierarchical sampler against the number of frames.

Run:  python -m experiments.editing.long_edits VIDEO MODEL    # of any size: the memory is what is measured

VIDEO has as many frames as are asked for, MODEL is a released folder of an image model with a ControlNet. Every row
is a `vdm-jax edit` of the first frames in a process of its own, from its start to its end: reading, control maps,
sampling and writing. Peak memory is the most that was resident in it at once, interpreter, libraries and compilation
included. A row is written when it is there, so an interrupted run goes on. results/long_edits.json is the record, and
the table of README.md is made of it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.editing.run import describe_machine, read
from experiments.end_to_end.run import VDM_JAX, measured
from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from vdm_jax.configuration import Count, Size
from vdm_jax.diffusion.key_frames import key_frames, published_window
from vdm_jax.errors import UserError
from vdm_jax.runs.directory import read_config
from vdm_jax.stages.parameters import network_shapes
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
TOGETHER, HIERARCHICAL = "all frames together", "from key frames"
NAMED_BY = ("sampler", "frames", "size", "steps", "video")  # what a row is of


@dataclasses.dataclass(frozen=True)
class Run:
    """Edit more and more frames of a video, and measure the memory that it takes."""

    video: tyro.conf.Positional[Path]
    model: tyro.conf.Positional[Path]
    frames: tuple[Count, ...] = (16, 50, 100)
    together: tuple[Count, ...] = (16, 50)  # without key frames, where up to 64 frames see each other
    size: tuple[Size, Size] = (64, 64)  # height and width, pixels
    steps: Count = 2  # of the sampler, at both of which frames are smoothed
    out: Path = FOLDER / "results" / "long_edits.json"


def command(options: Run, sampler: str, frames: int, out: Path) -> list[str]:
    """The edit of a row."""
    height, width = map(str, options.size)
    more = ["--hierarchical"] if sampler == HIERARCHICAL else []
    return [*VDM_JAX, "edit", str(options.video.resolve()), "--model", str(options.model.resolve()), "--method",
            "controlvideo", "--control", "canny", "--prompt", "a three", "--frames", str(frames), "--height", height,
            "--width", width, "--steps", str(options.steps), "--smooth", *(("2", "1") if options.steps > 1 else ("1",)),
            "--out", str(out), *more]


def rows(options: Run) -> list[dict[str, Any]]:
    """What each row is of. Raises `UserError` for a video that is too short."""
    wanted = [(HIERARCHICAL, frames) for frames in options.frames] + [(TOGETHER, n) for n in options.together]
    with VideoReader(options.video) as file:
        if (most := max(frames for _, frames in wanted)) > len(file):
            raise UserError(f"video={options.video} has {len(file)} frames; permitted: from {most}, as many as are "
                            "asked for", "long_edits.video")
    return [{"sampler": sampler, "frames": frames, "size": list(options.size), "steps": options.steps,
             "video": options.video.name} for sampler, frames in wanted]


def about(options: Run, row: dict[str, Any]) -> dict[str, Any]:
    """How many frames the network sees at once, and how large it is."""
    import jax

    window = published_window(row["frames"])
    keys = len(key_frames(row["frames"], window))
    stage, = read_config(options.model).stages
    return {"seen": max(keys, window) if row["sampler"] == HIERARCHICAL else row["frames"],
            "parameters": sum(x.size for x in jax.tree.leaves(network_shapes(stage)))}


def table(found: Sequence[dict[str, Any]]) -> str:
    """A line for each row."""
    lines = ["| sampler | frames | of which the network sees at once | peak memory, MiB | CPU s |",
             "|---|---:|---:|---:|---:|"]
    for row in found:
        peak = "-" if row["peak_mib"] is None else row["peak_mib"]
        lines.append(f"| {row['sampler']} | {row['frames']} | {row['seen']} | {peak} | {row['cpu']:.0f} |")
    return "\n".join(lines)


def main(options: Run, page: Path = FOLDER / "README.md") -> None:
    """Measure what is missing, row by row, and put the table into the page."""
    for named in rows(options):
        there = read(options.out)
        if any(all(row[name] == named[name] for name in NAMED_BY) for row in there):
            continue
        with tempfile.TemporaryDirectory() as folder:
            cost = measured(command(options, named["sampler"], named["frames"], Path(folder) / "edited.mp4"),
                            JAX_COMPILATION_CACHE_DIR=f"{folder}/cache")  # empty, so that every row compiles
        row = named | about(options, named) | cost | describe_machine()
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps([*there, row], indent=1) + "\n")
        print(row["sampler"], row["frames"], row["peak_mib"], row["cpu"], flush=True)
    page.write_text(insert(page.read_text(), "long_edits", table(read(options.out))))


if __name__ == "__main__":
    sys.exit(exit_code("editing", lambda: main(tyro.cli(Run, description=__doc__))))
