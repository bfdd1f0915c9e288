"""What sources over folders of files share: listing, splits by file name, caption tables, skipping bad files."""

from __future__ import annotations

import csv
import hashlib
import logging
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from vdm_jax.errors import UserError

SPLITS = ("train", "validation", "test")

T = TypeVar("T")
log = logging.getLogger(__name__)


def list_files(kind: str, path: str, suffixes: Collection[str]) -> list[str]:
    """Names, relative to the folder and sorted, of all files below it with one of the suffixes, hidden ones left out.

    Raises `UserError` when the folder is missing or holds no such file; `kind` is the config's name in the message.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{kind}.path={path!r}: no such folder")
    relative = (file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    names = sorted(n.as_posix() for n in relative if not any(part.startswith(".") for part in n.parts))
    names = [name for name in names if (folder / name).is_file()]
    if not names:
        raise UserError(f"{kind}.path={path!r} holds no file to read; permitted: {', '.join(sorted(suffixes))}")
    return names


def check_fractions(kind: str, fractions: Sequence[float]) -> None:
    """Raises `UserError` unless these are three shares that sum to 1."""
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise UserError(f"{kind}.fractions={fractions!r}; permitted: shares of {', '.join(SPLITS)} that sum to 1")


def files_of_split(kind: str, names: Sequence[str], split: str, fractions: Sequence[float]) -> list[str]:
    """The names that belong to a split, decided for each by a hash of the name, so that files added later move none.

    In a small folder a split can come out empty; one that has a share then takes the nearest file of the largest split,
    training even the only file.

    Raises `UserError` for an unknown split, and for one that stays empty.
    """
    if split not in SPLITS:
        raise UserError(f"split={split!r}; permitted: {', '.join(SPLITS)}")
    place = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names}
    members: dict[str, list[str]] = {s: [] for s in SPLITS}
    ends = (fractions[0], fractions[0] + fractions[1])
    for name in sorted(names, key=place.__getitem__):
        share = sum(place[name] >= end for end in ends)
        if fractions[share] == 0:  # rounding of the sums at an end
            share = max(range(3), key=fractions.__getitem__)
        members[SPLITS[share]].append(name)
    for empty, fraction in zip(SPLITS, fractions, strict=True):
        donor = max(members.values(), key=len)
        if fraction > 0 and not members[empty] and len(donor) > (0 if empty == "train" else 1):
            members[empty].append(donor.pop())
    if not members[split]:
        raise UserError(f"{kind}: split {split!r} gets none of {len(names)} files with fractions={tuple(fractions)}; "
                        "permitted: more files, or a larger share for it")
    return sorted(members[split])


def read_captions(kind: str, path: str | None, names: Collection[str]) -> dict[str, str]:
    """Captions by file name from a CSV with the columns `file` (relative to the folder) and `caption`.

    Files without a row get '' and rows without a file are left out; the number of each is logged once.

    Raises `UserError` for a missing file or column, an incomplete row, or a file named twice.
    """
    if path is None:
        return dict.fromkeys(names, "")
    captions: dict[str, str] = {}
    try:
        with open(Path(path).expanduser(), newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = {"file", "caption"} - set(table.fieldnames or ())
            if missing:
                found = ", ".join(table.fieldnames or ()) or "none"
                raise UserError(f"{kind}.captions={path!r}: columns {found}; permitted: file, caption")
            for row in table:
                where = f"{kind}.captions={path!r} line {table.line_num}"
                if not row["file"] or row["caption"] is None:
                    raise UserError(f"{where}: incomplete row; permitted: a file and a caption")
                if row["file"] in captions:
                    raise UserError(f"{where}: file {row['file']!r} for the second time; permitted: once")
                captions[row["file"]] = row["caption"].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{kind}.captions={path!r} is unreadable: {error}") from error
    _note_mismatch(path, "rows name no file of the folder", sorted(set(captions) - set(names)))
    _note_mismatch(path, "files have no caption", sorted(set(names) - set(captions)))
    return {name: captions.get(name, "") for name in names}


def read_caption_files(path: str, names: Collection[str], suffix: str) -> dict[str, str]:
    """Captions by file name from text files of the same name with another suffix; '' where there is none, which is
    logged once."""
    folder = Path(path).expanduser()
    captions = {}
    for name in names:
        file = (folder / name).with_suffix(suffix)
        if file.is_file():
            captions[name] = file.read_text(encoding="utf-8-sig", errors="replace").strip()
    _note_mismatch(path, "files have no caption", sorted(set(names) - set(captions)))
    return {name: captions.get(name, "") for name in names}


def _note_mismatch(path: str, what: str, names: Sequence[str]) -> None:
    if names:
        log.warning("%s: %d %s (the first is %s)", path, len(names), what, names[0])


class SkippedFiles(dict[str, str]):
    """Why files were left out, by name. The first time a file is added it is logged, never again."""

    def add(self, name: str, reason: str) -> None:
        """Notes a file that is not used."""
        if self.setdefault(name, reason) is reason:
            log.warning("skipped %s: %s", name, reason)

    def first_readable(self, start: int, names: Sequence[str], read: Callable[[int], T]) -> T:
        """`read(k)` of the first k = start, start + 1, ... (around) that does not raise `UserError`; others are noted.

        A file can prove damaged only when it is decoded, hours into a run. The clip then comes from the next file:
        still a function of the number asked for and of the files alone.
        """
        for step in range(len(names)):
            k = (start + step) % len(names)
            try:
                return read(k)
            except UserError as error:
                self.add(names[k], str(error))
        raise UserError(f"none of {len(names)} files is readable; the last: {self[names[start - 1]]}")


def in_range(index: int, length: int) -> int:
    """`index` as an int; `IndexError` outside [0, length), so that iterating over a source ends."""
    number = int(index)
    if not 0 <= number < length:
        raise IndexError(f"clip {number} of {length}")
    return number
