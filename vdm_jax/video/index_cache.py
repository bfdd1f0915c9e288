"""Indexing many video files once: the results are kept in one JSON file, outside the folder of videos."""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vdm_jax.errors import UserError
from vdm_jax.video.containers import MomentaryError, display_name
from vdm_jax.video.frame_index import FrameIndex
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import atomic_path

log = logging.getLogger(__name__)

_FORMAT = 2  # to be raised whenever an index of the same file would come out differently
_THREADS = 4


def index_files(paths: Sequence[Path], cache: Path) -> list[FrameIndex | str]:
    """The frame index of each file, or one line saying why it is unreadable.

    What `cache` knows of a file with the same path, size and modification time is not read again. Only what the bytes
    of a file decide is kept: a file that cannot be opened now is tried again the next time. A cache that cannot
    be read is made anew; one that cannot be written costs time at the next start and is logged.
    """
    known = _load(cache)
    stamps = [_stamp(path) for path in paths]
    keys = [str(path.absolute()) for path in paths]
    fresh = {key: path for key, path, stamp in zip(keys, paths, stamps, strict=True)
             if stamp is None or known.get(key, {}).get("stamp") != stamp}
    if fresh:
        with ThreadPoolExecutor(_THREADS) as pool:
            entries = list(pool.map(_index_entry, fresh.values()))
        stamp_of = dict(zip(keys, stamps, strict=True))
        known |= {key: {"stamp": stamp_of[key], **entry} for key, entry in zip(fresh, entries, strict=True)}
        _save(cache, {key: known[key] for key in keys if not known[key].get("momentary")})
    return [known[key]["error"] if "error" in known[key] else FrameIndex.from_json(known[key]["index"]) for key in keys]


def _index_entry(path: Path) -> dict:
    try:
        with VideoReader(path) as reader:
            return {"index": reader.index.to_json()}
    except UserError as error:
        return {"error": str(error).removeprefix(f"{display_name(path)}: "),
                "momentary": isinstance(error, MomentaryError)}
    except Exception as error:  # a damaged file can fail in any way, and must not end the work on the others
        log.debug("video %s", display_name(path), exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        return {"error": f"not a readable video ({' '.join(reason.split())})", "momentary": True}


def _stamp(path: Path) -> list[int] | None:
    """Size and modification time; None where the system does not say them."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _load(cache: Path) -> dict[str, dict]:
    try:
        data = json.loads(cache.read_text())
        if data["format"] != _FORMAT:
            return {}
        for entry in data["files"].values():
            if "error" not in entry:
                FrameIndex.from_json(entry["index"])
        return data["files"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("video index %s is unreadable (%s) and is made anew", cache, error)
        return {}


def _save(cache: Path, files: dict[str, dict]) -> None:
    try:
        with atomic_path(cache) as temporary:
            temporary.write_text(json.dumps({"format": _FORMAT, "files": files}))
    except OSError as error:
        log.warning("video index %s cannot be written (%s); it will be made again at the next start", cache, error)


def default_cache_folder() -> Path:
    """Where indexes are kept: `$XDG_CACHE_HOME/vdm_jax/video_index`, by default below `~/.cache`.

    Without a home (no HOME and no entry of the user, as in some containers) it is a folder for temporary files.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        root = Path(tempfile.gettempdir()) / f"vdm_jax_{os.getuid()}"
        _warn_homeless(root)
    return root / "vdm_jax" / "video_index"


@functools.cache
def _warn_homeless(root: Path) -> None:
    log.warning("no home folder: video indexes are kept in %s; set XDG_CACHE_HOME for another place", root)
