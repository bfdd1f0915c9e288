"""Control maps that `vdm-jax edit` makes of its video: a folder next to the result, gone when that is there."""

from __future__ import annotations

import json
from pathlib import Path

from vdm_jax.data.control_record import RECORD
from vdm_jax.errors import UserError
from vdm_jax.video.json_files import read_json
from vdm_jax.video.writing import atomic_path

MADE = ("canny", "hed", "flow")  # kinds of maps of the frames alone
STAMP = "edited_video.json"  # of which video the maps are; without it a folder is not ours


def make_maps(
    video: Path, folder: Path, kind: str, frames: int | None = None, size: tuple[int, int] | None = None
) -> Path:
    """The maps of a video, frame for frame. Those of an interrupted call are taken, unless they are of another video,
    kind, number of frames or size.

    Args:
      frames: how many maps there are at most, of the first frames; None: of all.
      size: height and width of the frames that the maps are made of; None: the video's own.

    Raises `UserError` for a folder with other files, and as `annotate`.
    """
    from vdm_jax.annotation.folder import KINDS, annotate

    stat, path = video.stat(), maps_of(video, folder)
    stamp = {"video": str(video.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "kind": kind,
             "maps": path.name, "frames": frames, "size": None if size is None else list(size)}
    if _stamp(folder) != stamp:
        remove_maps(folder)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} has files that are not of this command; permitted: another --out, or remove it")
        with atomic_path(folder / STAMP) as temporary:
            temporary.write_text(json.dumps(stamp) + "\n")
    annotate(video.absolute(), folder, kind, KINDS[kind](), frames=frames, size=size)
    return path


def maps_of(video: Path, folder: Path) -> Path:
    """Where `annotate` writes them."""
    return folder / f"{video.stem}.mp4"


def remove_maps(folder: Path) -> None:
    """Delete the files that `make_maps` wrote, and the folder where nothing else is in it."""
    stamp = _stamp(folder)
    if stamp is None:
        return
    for name in (stamp["maps"], RECORD, STAMP):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _stamp(folder: Path) -> dict | None:
    """None where the folder has none. Raises `UserError` for a damaged one."""
    path = folder / STAMP
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        if Path(found["maps"]).name != found["maps"]:
            raise ValueError("maps in another folder")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a readable stamp of maps ({error}); permitted: remove the folder") from error
    return found
