"""What sources over folders of files share: listing, splits by file name, skipping bad files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vdm_jax.configuration import SPLITS, Split, check_value
from vdm_jax.data.captions import read_caption_files, read_captions, warn_once
from vdm_jax.data.names import is_utf8, printable
from vdm_jax.errors import UserError

__all__ = ["MAX_DAMAGED", "MAX_DAMAGED_SHARE", "Numbered", "SkippedFiles", "check_fractions",
           "files_of_split", "in_range", "list_files", "read_caption_files", "read_captions"]

# Files of a split that may prove damaged while they are decoded in training: so many, or this share of them.
MAX_DAMAGED = 10
MAX_DAMAGED_SHARE = 0.1

T = TypeVar("T")
log = logging.getLogger(__name__)


def list_files(kind: str, path: str, suffixes: Collection[str], skipped: SkippedFiles | None = None) -> list[str]:
    """Names, relative to the folder and sorted, of all files below it with one of the suffixes, hidden ones left out.

    Linked folders are followed; a folder that is linked twice is read once, and one that contains the link not at all.
    Names that are not UTF-8 and folders that may not be read are noted in `skipped`.

    Raises `UserError` when the folder is missing or holds no such file; `kind` is the config's name in the message.
    """
    folder = Path(path).expanduser()
    skipped = SkippedFiles() if skipped is None else skipped
    if not folder.is_dir():
        raise UserError(f"{kind}.path={path!r}: no such folder")
    names = []
    for file in _walk(kind, folder, skipped):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() not in suffixes or not file.is_file():
            continue
        if is_utf8(name):
            names.append(name)
        else:
            skipped.add_listed(folder, file, "its name is not UTF-8; rename it")
    if not names:
        because = f" ({len(skipped)} skipped; the first: {next(iter(skipped.items()))})" if skipped else ""
        raise UserError(f"{kind}.path={path!r} holds no file to read{because}; permitted: "
                        f"{', '.join(sorted(suffixes))}")
    return sorted(names)


def _walk(kind: str, folder: Path, skipped: SkippedFiles) -> Iterator[Path]:
    """All files below a folder that are not hidden, through links too; each real folder once, by its own name first."""
    seen: set[str] = set()
    here, links = [folder], []
    while here or links:
        current = here.pop() if here else links.pop(0)
        real = os.path.realpath(current)
        above = os.path.realpath(current.parent)
        if real in seen or (current.is_symlink() and current != folder and (above + os.sep).startswith(
                real.rstrip(os.sep) + os.sep)):
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(current), key=lambda entry: os.fsencode(entry.name))
        except PermissionError as error:
            if current == folder:
                raise UserError(f"{kind}.path={str(folder)!r} cannot be read: {error.strerror}") from error
            skipped.add_listed(folder, current, f"cannot be read: {error.strerror}")
            continue
        except OSError as error:  # of the moment: a shorter list of files would be taken for the whole one
            raise UserError(f"{kind}: {printable(str(current))} cannot be listed: {error.strerror}; permitted: a "
                            "folder that stays readable") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else here).append(current / entry.name)
            else:
                yield current / entry.name


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
    check_value(split, Split, "split")
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


@dataclasses.dataclass(frozen=True)
class Numbered(Sequence[str]):
    """The names of items that have numbers only, made when they are asked for: a set can have millions."""

    kind: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> str:
        return f"{self.kind} {in_range(number, self.count)}"


class SkippedFiles(dict[str, str]):
    """Why files were left out, by name. The first time a file is added it is logged, never again."""

    damaged = 0  # files that proved damaged when they were decoded
    replaced = 0  # clips that came from another file, because their own did not decode

    def add(self, name: str, reason: str) -> None:
        """Notes a file that is not used. A reason that begins with the path of the file goes without it."""
        if name not in self:
            path, found, rest = reason.partition(f"{name}: ")
            self[name] = reason = rest if found and (not path or path.endswith("/")) else reason
            log.warning("skipped %s: %s", printable(name), printable(reason))

    def add_listed(self, folder: Path, path: Path, reason: str) -> None:
        """Notes what is left out of the list of a folder, which every split makes: logged once for all of them."""
        name = printable(path.relative_to(folder).as_posix())
        if name not in self:
            self[name] = reason
            warn_once(f"skipped {name} of {printable(str(folder))}: {reason}")

    def noting(self, name: str, read: Callable[[], T]) -> T:
        """`read()`, whose `UserError` is noted as the reason of a file, and raised with its name."""
        try:
            return read()
        except UserError as error:
            self.damaged += name not in self
            self.add(name, str(error))
            raise UserError(f"{printable(name)}: {self[name]}") from error

    def first_readable(self, start: int, names: Sequence[str], read: Callable[[int], T]) -> T:
        """`read(k)` of the first k = start, start + 1, ... (around) that does not raise `UserError`; others are noted.

        A file can prove damaged only when it is decoded, hours into a run. The clip then comes from the next file:
        still a function of the number asked for and of the files alone. How many clips did so is counted and logged.

        Raises `UserError` where more files prove damaged than `MAX_DAMAGED` and `MAX_DAMAGED_SHARE` permit.
        """
        for step in range(len(names)):
            k = (start + step) % len(names)
            try:
                found = self.noting(names[k], functools.partial(read, k))
            except UserError as error:
                if self.damaged > max(MAX_DAMAGED, MAX_DAMAGED_SHARE * len(names)):
                    raise UserError(f"{self.damaged} of {len(names)} files do not decode (the last, {error}); "
                                    f"permitted: at most {MAX_DAMAGED}, or {MAX_DAMAGED_SHARE:.0%}") from error
                continue
            if step:
                self.replaced += 1
                if self.replaced in (1, 10, 100, 1000) or self.replaced % 10_000 == 0:
                    log.warning("%d clips so far came from another file, because their own does not decode; %d files "
                                "are skipped", self.replaced, len(self))
            return found
        last = names[(start - 1) % len(names)]
        raise UserError(f"none of {len(names)} files is readable; the last, {printable(last)}: {self[last]}")


def in_range(index: int, length: int) -> int:
    """`index` as an int; `IndexError` outside [0, length), so that iterating over a source ends."""
    number = int(index)
    if not 0 <= number < length:
        raise IndexError(f"clip {number} of {length}")
    return number
