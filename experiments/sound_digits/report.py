"""The record of `run.py` as a table in README.md, and a picture of the first clips with their beats.

Run:  python -m experiments.sound_digits.report
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.control_digits import models as control
from experiments.digit_rows import PICTURE, SHOWN, draw_strips, lines_of, with_picture
from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from experiments.sound_digits import models
from experiments.sound_digits.run import FLOOR, FOLDER, GOAL, NONE, OTHER, OWN, REAL
from vdm_jax.benchmark.record import load
from vdm_jax.digits.beats import BeatClip, make_beat_clip

Beats = Sequence[Int[np.ndarray, " N"]]  # frames, of each clip
COLUMNS = {"av_align": "AV-Align", "av_align_jumps": "AV-Align of jumps", "followed": "beats followed",
           "peaks": "peaks a clip", "jumps": "jumps a clip", "digit": "digit", "colour": "colour"}


def rows_of(record: dict[str, Any]) -> list[str]:
    """The rows that were measured, in their order."""
    rows = record["rows"]
    return [name for name in (REAL, FLOOR, NONE, OTHER, OWN) if name in rows] + [
        name for name in rows if name.startswith("sound x ")]


def table(record: dict[str, Any]) -> str:
    """A line for each row: bounds, the model without sound, with that of another clip, with its own."""
    return "\n".join([*lines_of(record, "videos", COLUMNS, rows_of(record)), "", *goals(record), "", about(record)])


def goals(record: dict[str, Any]) -> list[str]:
    """What was aimed at, and whether it was reached."""
    rows, found = record["rows"], []
    for name in (name for name in rows_of(record) if name == OWN or name.startswith("sound x ")):
        value = rows[name]["av_align"]["mean"]
        found.append(f"- {name}: AV-Align {value:.2f}, goal >= {GOAL:g}: {_reached(value >= GOAL)}.")
    if OTHER in rows:
        other, floor = rows[OTHER]["av_align"], rows[FLOOR]["av_align"]
        met = abs(other["mean"] - floor["mean"]) <= other["half"] + floor["half"]
        found.append(f"- {OTHER}: AV-Align {other['mean']:.2f}, floor {floor['mean']:.2f}, goal: intervals that meet: "
                     f"{_reached(met)}.")
    return found


def _reached(yes: bool) -> str:
    return "reached" if yes else "not reached"


def about(record: dict[str, Any]) -> str:
    """How the numbers came about."""
    protocol, device, model = record["protocol"], record["device"], record["model"]
    training = record["rows"].get("training")
    minutes = "" if training is None else (f" Minutes of training, of the last sitting where it was interrupted: "
                                           f"{training['train_seconds'] / 60:.1f}.")
    return (f"Means with 95 % intervals over the first {protocol['clips']} clips of the {protocol['split']} split "
            f"(Student's t); one training (seed {protocol['seed']}), {protocol['steps']} steps of {protocol['batch']} "
            f"clips from where the base (seed {model['base_seed']}, {model['base_steps']} steps) ended, "
            f"{protocol['sampling_steps']} sampling steps. Peaks of motion have a "
            f"mean flow of at least {protocol['least_motion']:g} pixels of 64, jumps of {protocol['half_a_jump']:.2f}."
            f"{minutes} {device['kind']}, {device['cores']} cores; jax {record['versions']['jax']}; {record['date']}.")


def heard(record: dict[str, Any], clips: list[BeatClip]) -> dict[str, Beats]:
    """The beats of the sound that each row heard, of all clips but the last: a row of another clip heard the next."""
    beats, silent = [clip.beats for clip in clips], np.array([], int)
    return {name: beats[1:] if name == OTHER else [silent] * SHOWN if name == NONE else beats[:-1]
            for name in rows_of(record) if name != FLOOR}


def on_page(record: dict[str, Any], page: Path, picture: Path) -> str:
    """The table, and under it the picture where there is one, by its place next to the page."""
    return with_picture(table(record), "real and generated clips, beats marked", page, picture)


def marked(of_rows: Mapping[str, Beats], frames: int) -> Callable[[Any, str, int], None]:
    """What draws a mark above each frame of a strip that has a beat, of clips of so many frames."""
    def mark(axes: Any, name: str, width: int) -> None:
        side = width / len(of_rows[name]) / frames  # pixels of a frame
        places = [(i * frames + beat + 0.5) * side - 0.5 for i, beats in enumerate(of_rows[name]) for beat in beats]
        axes.scatter(places, [-0.22 * side] * len(places), s=20, marker="v", color="black", clip_on=False)

    return mark


def main(page: Path = FOLDER / "README.md", path: Path = FOLDER / "results" / "cpu.json") -> int:
    """Put the table into the page, and draw the picture next to the record."""
    def write() -> None:
        record = load(path)
        data = models.data_of(control.base_of(record["protocol"]["config"], 0))
        clips = [make_beat_clip(data, "test", i) for i in range(SHOWN + 1)]
        captions, beats = [clip.caption for clip in clips[:-1]], heard(record, clips)
        draw_strips(path.parent, beats, captions, marked(beats, data.frames))
        page.write_text(insert(page.read_text(), "sound", on_page(record, page, path.parent / PICTURE)))

    return exit_code("sound_digits", write)


if __name__ == "__main__":
    sys.exit(main())
