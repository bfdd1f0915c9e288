"""Which videos of UCF101 and Kinetics-600 belong to a split, and what each shows, from their lists."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

from vdm_jax.data.folder import list_files
from vdm_jax.data.published_set import PublishedSet
from vdm_jax.data.tfds_video import in_words
from vdm_jax.data.video_folder import SUFFIXES
from vdm_jax.errors import UserError

log = logging.getLogger(__name__)

# --- UCF101 ---


def ucf101_files(spec: PublishedSet, parts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Caption and label of every listed video, by name.

    Files are found by their name alone in lower case: copies differ in the folders around them and in one capital.
    """
    lists = spec.folder / "ucfTrainTestlist"
    classes = [line[1] for line in _lines(spec, lists / "classInd.txt", columns=2)]
    there = {Path(name).name.lower(): name for name in _videos(spec)}
    number = {name.lower(): i for i, name in enumerate(classes)}
    files, absent = {}, []
    for part in parts:
        path = lists / f"{part}list{spec.division:02d}.txt"
        for line in _lines(spec, path, columns=1):
            folder, _, name = line[0].rpartition("/")
            if folder.lower() not in number:
                raise UserError(f"{path}: {line[0]!r} is of no class of classInd.txt; permitted: CLASS/VIDEO.avi")
            label = number[folder.lower()]
            if name.lower() in there:
                files[there[name.lower()]] = {"caption": in_words(classes[label]), "label": label}
            else:
                absent.append(name)
    if absent:
        raise spec.missing(f"{len(absent)} of {len(absent) + len(files)} listed videos are missing (the first is "
                           f"{absent[0]})")
    return files


def _lines(spec: PublishedSet, path: Path, columns: int) -> list[list[str]]:
    """The words of each line of a list. Raises `UserError` where there is no such file or a line is too short."""
    try:
        lines = [line.split() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise spec.missing(f"{path.relative_to(spec.folder)} is missing") from error
    for number, line in enumerate(lines, 1):
        if len(line) < columns:
            raise UserError(f"{path} line {number}: {' '.join(line)!r}; permitted: {columns} words")
    return lines


def _videos(spec: PublishedSet, below: str = "") -> list[str]:
    """Names of all videos below a folder of the set, relative to the set."""
    try:
        names = list_files(type(spec).__name__, str(spec.folder / below), SUFFIXES)
    except UserError as error:
        raise spec.missing(f"no videos in {spec.path}/{below}".rstrip("/")) from error
    return [f"{below}/{name}" if below else name for name in names]


# --- Kinetics-600 ---


def kinetics_files(spec: PublishedSet, parts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Captions of the videos of some parts, by name."""
    files: dict[str, dict[str, Any]] = {}
    for part in parts:
        names = _videos(spec, part)
        if spec.labels == "annotations":
            labels = _annotations(spec, part)
            files |= {name: {"caption": labels.get(Path(name).name[:11], "")} for name in names}
        elif spec.labels == "folders":
            files |= {name: {"caption": _class_folder(spec, name)} for name in names}
        else:
            files |= {name: {"caption": ""} for name in names}
    unlabelled = sum(not facts["caption"] for facts in files.values())
    if unlabelled and spec.labels == "annotations":
        log.warning("%s: %d of %d videos are not in the annotations and have no caption", spec.path, unlabelled,
                    len(files))
    return files


def _class_folder(spec: PublishedSet, name: str) -> str:
    folder = Path(name).parent
    if len(folder.parts) < 2:
        raise UserError(f"Kinetics600.labels='folders', but {spec.path}/{name} lies in no folder of a class; "
                        "permitted: labels='annotations' or 'none', or videos in PART/CLASS/")
    return in_words(folder.name)


def _annotations(spec: PublishedSet, part: str) -> dict[str, str]:
    """Labels by YouTube id; none where the part's are held out."""
    paths = [spec.folder / "annotations" / f"{part}{suffix}" for suffix in (".csv", ".txt")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise spec.missing(f"annotations/{part}.csv is missing (labels='none' does without captions)")
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        table = csv.DictReader(file)
        if "youtube_id" not in (table.fieldnames or ()):
            raise UserError(f"{path}: columns {', '.join(table.fieldnames or ()) or 'none'}; permitted: youtube_id and "
                            "label among them")
        return {row["youtube_id"]: (row.get("label") or "").strip() for row in table}
