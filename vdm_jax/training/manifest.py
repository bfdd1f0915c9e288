"""The manifest of a checkpoint: the files and arrays that there must be.

It lists the size of every file, the SHA-256 of those under 1 MiB, and the dtype and shape of every array. Renaming
a complete checkpoint does not force its data to disk: after a power cut, an interrupted copy or a deleted file,
orbax alone would find the step and fail later without saying why. A flipped bit in a large file is not detected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Literal

from etils import epath

Damaged = Literal["refuse", "skip"]  # the newest checkpoint when it is damaged: refused, or the one before is used

MANIFEST = "manifest.json"

_FORMAT = "vdm_jax.checkpoint/1"
_UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt")  # orbax rewrites them after the manifest
_HASHED_BYTES = 1 << 20


def write_manifest(root: epath.Path, step: int, arrays: Mapping[str, str]) -> None:
    """Describes the files now under `root`, and the `arrays` in them (name -> dtype and shape)."""
    files = dict(_files(root))
    sizes = {name: path.stat().length for name, path in files.items()}
    hashes = {name: _sha256(path) for name, path in files.items() if sizes[name] < _HASHED_BYTES}
    manifest = {"format": _FORMAT, "step": step, "sizes": sizes, "sha256": hashes, "arrays": dict(arrays)}
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1))


def examine(root: epath.Path) -> tuple[dict, str | None]:
    """The manifest under `root` ({} if it cannot be used), and what is wrong with it or with the files, or None."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        layout, sizes, hashes, _ = (manifest[key] for key in ("format", "sizes", "sha256", "arrays"))
    except FileNotFoundError:
        return {}, f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return {}, f"{MANIFEST} is not readable"
    if layout != _FORMAT:
        return {}, f"{MANIFEST} has format {layout!r}; permitted: {_FORMAT!r}"
    for name, size in sizes.items():
        path = root / name
        if not path.exists():
            return manifest, f"{name} is missing"
        if (found := path.stat().length) != size:
            return manifest, f"{name} has {found} bytes instead of {size}"
        if name in hashes and _sha256(path) != hashes[name]:
            return manifest, f"{name} has changed since it was written"
    return manifest, None


def _files(root: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Name relative to `root` and path of every file that the manifest lists."""
    for path in sorted(root.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif path.name not in _UNSEALED:
            yield f"{prefix}{path.name}", path


def _sha256(path: epath.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
