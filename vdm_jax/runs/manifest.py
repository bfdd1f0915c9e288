"""The manifest of a checkpoint: whose it is, and the files and arrays that there must be.

It names the run, the stage and the step, so that directories that were exchanged or renamed are noticed, and lists the
size and the hash of every file, and the dtype and shape of every array. Its last entry is a hash of itself. Renaming a
complete checkpoint does not force its data to disk: after a power cut, an interrupted copy, a deleted file or a flipped
bit, orbax alone would find the step and fail later, or go on with other weights.

Files are hashed (SHA-256) in pieces of 16 MiB by several threads, about 1 GB/s per core. Writing
does so in the thread that saves, during the training. Reading splits the pieces among the processes that read together.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from etils import epath

log = logging.getLogger(__name__)

Damaged = Literal["refuse", "skip"]  # the newest checkpoint when it is damaged: refused, or the one before is used

MANIFEST = "manifest.json"

_FORMAT = "vdm_jax.checkpoint/2"
_OLDER = "vdm_jax.checkpoint/1"  # SHA-256 of files under 1 MiB only, no owner; read with a warning
_UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt")  # orbax rewrites them after the manifest
_PIECE = 16 << 20  # bytes
_THREADS = min(16, os.cpu_count() or 1)


def write_manifest(root: epath.Path, step: int, arrays: Mapping[str, str], owner: Mapping[str, str]) -> None:
    """Describes the files now under `root`, and the `arrays` in them (name -> dtype and shape).

    `owner` says whose they are: the `run` (an identifier) and the `stage`.
    """
    files = dict(_files(root))
    sizes = {name: path.stat().length for name, path in files.items()}
    manifest = {"format": _FORMAT, "step": step, "owner": dict(owner), "sizes": sizes,
                "hashes": _hashes(root, sizes), "arrays": dict(arrays)}
    (root / MANIFEST).write_text(json.dumps({**manifest, "manifest": _digest(manifest)}, indent=1))


def examine(root: epath.Path, owner: Mapping[str, str] | None = None, part: str = "",
            share: tuple[int, int] = (0, 1)) -> tuple[dict, str | None]:
    """The manifest under `root` ({} if it cannot be used), and what is wrong with it or with the files, or None.

    Args:
      root: directory of a step, named by its number.
      owner: whose checkpoint it must be; what is not named is not compared.
      part: only files whose names begin so are hashed; sizes are compared for all.
      share: `(index, count)`: only every `count`-th piece is hashed, by `count` processes that read together.
    """
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        layout = manifest["format"]
        if layout == _OLDER:
            return manifest, _examine_older(root, manifest)
        sealed = manifest.pop("manifest", None)
        keys = ("step", "owner", "sizes", "hashes", "arrays")
    except FileNotFoundError:
        return {}, f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, f"{MANIFEST} is not readable"
    except OSError as error:
        return {}, f"{MANIFEST} cannot be read ({error.strerror})"
    if layout != _FORMAT:
        return {}, f"{MANIFEST} has format {layout!r}; permitted: {_FORMAT!r}"
    if sealed != _digest(manifest) or any(key not in manifest for key in keys):
        return {}, f"{MANIFEST} has changed since it was written"
    if str(manifest["step"]) != root.name:
        return {}, f"it was saved as step {manifest['step']}"
    for name, value in (owner or {}).items():
        if manifest["owner"].get(name) not in (None, value):
            return {}, f"it belongs to {name} {manifest['owner'][name]!r}, not to {value!r}"
    sizes, hashes = manifest["sizes"], manifest["hashes"]
    if damage := _wrong_size(root, sizes):
        return manifest, damage
    try:
        found = _hashes(root, {name: size for name, size in sizes.items() if name.startswith(part)}, share)
    except OSError as error:
        return manifest, f"it cannot be read ({error.strerror})"
    changed = [name for name, pieces in found.items()
               if any(piece not in ("", kept) for piece, kept in zip(pieces, hashes[name], strict=True))]
    return manifest, f"{changed[0]} has changed since it was written" if changed else None


def _examine_older(root: epath.Path, manifest: Mapping) -> str | None:
    """What is wrong with a checkpoint of the first format. Raises KeyError and the like for a damaged manifest."""
    log.warning("checkpoint %s was written by an older version, which did not hash files of 1 MiB or more: damage to "
                "these is not noticed; the next checkpoint is hashed whole", root)
    hashes = manifest["sha256"]
    manifest["arrays"]  # noqa: B018 - must be there
    if damage := _wrong_size(root, manifest["sizes"]):
        return damage
    changed = [name for name in hashes if hashlib.sha256((root / name).read_bytes()).hexdigest() != hashes[name]]
    return f"{changed[0]} has changed since it was written" if changed else None


def _wrong_size(root: epath.Path, sizes: Mapping[str, int]) -> str | None:
    for name, size in sizes.items():
        path = root / name
        if not path.exists():
            return f"{name} is missing"
        if (found := path.stat().length) != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


def _files(root: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Name relative to `root` and path of every file that the manifest lists."""
    for path in sorted(root.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif path.name not in _UNSEALED:
            yield f"{prefix}{path.name}", path


def _hashes(root: epath.Path, sizes: Mapping[str, int], share: tuple[int, int] = (0, 1)) -> dict[str, list[str]]:
    """SHA-256 of the pieces of each file; '' for pieces of which another process has care."""
    pieces = [(name, start) for name, size in sizes.items() for start in range(0, max(size, 1), _PIECE)]
    index, count = share
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda number: _piece_hash(root, *pieces[number]) if number % count == index else "",
                            range(len(pieces)))
        hashes: dict[str, list[str]] = {name: [] for name in sizes}
        for (name, _), text in zip(pieces, found, strict=True):
            hashes[name].append(text)
    return hashes


def _piece_hash(root: epath.Path, name: str, start: int) -> str:
    with (root / name).open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(_PIECE)).hexdigest()


def _digest(manifest: Mapping) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
