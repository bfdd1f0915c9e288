"""Places that a command will write to, checked before its work, so that nothing finished is lost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.errors import UserError

TEMPORARY = 32  # bytes that the name of a temporary file has beyond the name of its file


def check_file(path: Path, suffixes: Sequence[str], flag: str = "--out", make_folder: bool = False) -> None:
    """Refuse a file that could not be written: another suffix, a folder, a name too long, a folder that is missing
    (unless it will be made) or takes no files. Raises `UserError` naming the flag, the path and what is permitted."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{flag}={path} has suffix {path.suffix!r}; permitted: {', '.join(suffixes)}")
    longest = 255 - TEMPORARY
    if len(os.fsencode(path.name)) > longest:
        raise UserError(f"{flag}={path.name[:40]}... has a name of {len(os.fsencode(path.name))} bytes; permitted: up "
                        f"to {longest}")
    if path.is_dir():
        raise UserError(f"{flag}={path} is a folder; permitted: a file")
    if not path.parent.is_dir() and not make_folder:
        raise UserError(f"{flag}={path}: the folder {path.parent} does not exist; permitted: a file in an existing "
                        "folder")
    check_folder(path.parent, flag)


def check_videos(paths: Sequence[Path], fps: float, count: int, size: tuple[int, int] | None = None) -> None:
    """Refuse files whose format cannot hold `count` videos tiled in one.

    Args:
      paths: .mp4, .gif or .png files.
      fps: frames per second.
      count: of the videos.
      size: height and width of one video in pixels, where they are known.

    Raises:
      UserError: naming the file, the rate or size, and what is permitted.
    """
    from vdm_jax.video.grids import tiled_size  # here: what lists configs imports no NumPy
    from vdm_jax.video.writing import check_output

    for path in paths:
        if path.suffix.lower() != ".png":  # a grid of frames, at no rate
            check_output(path, fps, tiled_size(count, *size) if size else None)


def check_folder(path: Path, flag: str = "--out") -> None:
    """Refuse a folder, there or to be made, that no file could be written to. Raises `UserError`."""
    for part in path.parts:
        if len(os.fsencode(part)) > 255:
            raise UserError(f"{flag}: the name {part[:40]}... has {len(os.fsencode(part))} bytes; permitted: up to 255")
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag}={path} is a file; permitted: a folder, existing or new")
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{flag}={path}: {there} is a file; permitted: a folder, existing or new")
    _check_writable(there, f"{flag}={path}")


def _check_writable(folder: Path, what: str) -> None:
    """Write a byte into a folder and take it back: permissions alone do not show full and read-only disks."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError(f"{what} cannot be written: {folder} takes no files ({error.strerror}); permitted: a place in "
                        "a folder that can be written to") from error
