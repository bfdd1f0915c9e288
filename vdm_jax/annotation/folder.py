"""Control maps of the videos of a folder, written once: a file for each, which appears whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdm_jax.annotation.canny import Canny
from vdm_jax.annotation.depth import Depth
from vdm_jax.annotation.flow import Flow, StrokesOfVideos
from vdm_jax.annotation.frames import Part
from vdm_jax.annotation.hed import Hed
from vdm_jax.annotation.poses import Pose
from vdm_jax.data.control_record import RECORD, ControlRecord, read_record
from vdm_jax.data.decoding import stem
from vdm_jax.data.folder import SkippedFiles, list_files
from vdm_jax.data.video_folder import SUFFIXES
from vdm_jax.errors import UserError
from vdm_jax.video.writing import RATES, atomic_path, write_frames

Annotator = Canny | Hed | Pose | Depth | Flow | StrokesOfVideos
KINDS: dict[str, type[Annotator]] = {
    "canny": Canny, "hed": Hed, "pose": Pose, "depth": Depth, "flow": Flow, "strokes": StrokesOfVideos}


@dataclasses.dataclass
class Annotated:
    """What came of the videos of a folder."""

    written: int = 0
    there: int = 0  # from before
    skipped: SkippedFiles = dataclasses.field(default_factory=SkippedFiles)  # reasons by name


def annotate(
    source: Path, out: Path, kind: str, annotator: Annotator, progress: Callable[[int, int], None] | None = None, *,
    frames: int | None = None, size: tuple[int, int] | None = None,
) -> Annotated:
    """Writes the maps of a video, or of all videos below a folder, at the same places below `out`, with the name of
    the video and the ending .mp4, of its size and with its frames. Files that are there are left as they are, so that
    an interrupted run goes on; videos that do not decode, or have no keypoints or depth, are skipped. With `frames`
    only so many of each video, the first ones, get maps; with `size` (height, width) these are of frames cut and
    resized to it. Neither is recorded in `out`: who gives them looks after what is there from before.

    Raises `UserError` where there are no videos, two would have one name, none could be annotated, something that the
    annotator needs is not installed, or `out` has maps made otherwise.
    """
    annotator.check()
    found = Annotated()
    root = source if source.is_dir() else source.parent
    names = list_files("annotate", str(root), SUFFIXES, found.skipped) if source.is_dir() else [source.name]
    _check_names(names)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out={out} lies in the folder of videos {source}; permitted: a folder outside it")
    _record(out, ControlRecord(kind=kind, settings=dataclasses.asdict(annotator)))
    for number, name in enumerate(names):
        place = out / f"{stem(name)}.mp4"
        if place.is_file():
            found.there += 1
        else:
            try:
                found.skipped.noting(name, lambda name=name, place=place: _write(
                    Part(root / name, frames, size), place, annotator, name))
                found.written += 1
            except UserError:
                pass  # noted
        if progress is not None:
            progress(number + 1, len(names))
    if not found.written and not found.there:
        name, reason = next(iter(found.skipped.items()))
        raise UserError(f"none of {len(names)} videos of {source} could be annotated; the first, {name}: {reason}",
                        "annotate")
    return found


def _write(part: Part, place: Path, annotator: Annotator, name: str) -> None:
    with part as video:
        least, most = RATES[".mp4"]
        write_frames(place, annotator.frames(video, name), min(max(video.fps, least), most), lossless=True)


def _check_names(names: list[str]) -> None:
    places: dict[str, str] = {}
    for name in names:
        other = places.setdefault(stem(name), name)
        if other != name:
            raise UserError(f"{other} and {name} would have one file of maps; permitted: videos of different names but "
                            "for the ending", "annotate")


def _record(out: Path, record: ControlRecord) -> None:
    """Keeps how the maps of a folder are made. Raises `UserError` where those there were made otherwise."""
    known = read_record(out)
    if known is not None and (known.kind, _given(known.settings)) == (record.kind, _given(record.settings)):
        return
    if any(out.rglob("*.mp4")):
        made = "videos that are no maps" if known is None else f"maps of kind {known.kind!r} with {known.settings}"
        raise UserError(f"--out={out} has {made}; permitted: kind and settings of before, or another folder")
    with atomic_path(out / RECORD) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(record)) + "\n")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that are None: a record of before does not have each one."""
    return {name: value for name, value in settings.items() if value is not None}
